"""What the page asks of a model, against `predict_images` and numbers worked out by hand."""

import base64
import dataclasses
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from timm_drnet.core.norm import resize
from timm_drnet.data.pixels import UnreadableImageError
from timm_drnet.data.reading import image_loader
from timm_drnet.demo import network as module
from timm_drnet.demo.network import Album, Network, join
from timm_drnet.evaluate.prediction import predict_images

from .conftest import PHOTOS


@pytest.mark.parametrize('position', [None, 0, 30, 100])
def test_answers_are_those_of_predict(network, cascade, tmp_path, position):
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    files = [*PHOTOS[:5], tmp_path / 'broken.jpg', *PHOTOS[5:]]
    position = network.dial.own if position is None else position
    found = network.predict(network.look_at_all(files), position)
    expected = predict_images(network.dial.turn(position), files, network.labels, topk=5, batch_size=8)
    for one, other in zip(found.images, expected.images, strict=True):  # smaller parts of a batch are rounded otherwise
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
        assert one == dataclasses.replace(other, probabilities=one.probabilities)
    assert dataclasses.replace(found, images=()) == dataclasses.replace(expected, images=())
    assert found.unreadable[0].reason == 'not an image of a format that Pillow can read'


def test_one_photograph_is_one_of_an_album(network):
    photos = [network.look(path) for path in PHOTOS[:3]]
    album = network.look_at_all(PHOTOS[:3])
    joined = join([photo.answers for photo in photos])
    assert torch.equal(joined.classes, album.answers.classes)
    assert torch.allclose(joined.probabilities, album.answers.probabilities, atol=1e-6)
    assert network.agreement(joined, 100) == 3
    largest, smallest = joined.classes[:, 0, 0], joined.classes[:, 2, 0]
    assert network.agreement(joined, 0) == int((largest == smallest).sum())
    with pytest.raises(UnreadableImageError):
        network.look(PHOTOS[0].parent / 'README.md')
    assert network.predict(Album((), None), 50).images == ()


def test_what_the_network_saw(network, cascade):
    seen = [Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))) for uri in network.look(PHOTOS[0]).seen]
    assert [image.size for image in seen] == [(64, 64), (48, 48), (32, 32)]
    pixels = image_loader(cascade, normalize=False)(PHOTOS[0])
    assert np.array_equal(np.asarray(seen[0]), pixels.permute(1, 2, 0))
    for image in seen[1:]:
        smaller = resize(pixels[None].float(), image.width)[0].permute(1, 2, 0)
        assert np.abs(np.asarray(image, dtype=float) - smaller.numpy()).max() < 0.51


@pytest.mark.parametrize('thresholds', [(0.5, 0.5), (None, 0.5), (None, None)])
def test_times_are_medians_of_whole_ways(cascade, monkeypatch, thresholds):
    """A resolution takes as many seconds as it has pixels a side; now and then something disturbs the machine."""
    clock, calls = [0.0], [0]

    def forward_at(x, j):
        calls[0] += 1
        clock[0] += cascade.resolutions[j] * (1 + 9 * (calls[0] % 9 == 0))
        return torch.randn(len(x), 5)

    monkeypatch.setattr('timm_drnet.deploy.stopwatch.time', SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(module, '_fast', lambda model: SimpleNamespace(forward_at=forward_at))
    monkeypatch.setattr(cascade, 'args', dataclasses.replace(cascade.args, thresholds=thresholds))
    times = Network(cascade).look(PHOTOS[0]).times
    whole = {(0.5, 0.5): (144, 80, 32)}.get(thresholds, (96, None, 32))
    assert times.stopped == tuple(ms and 1e3 * ms for ms in whole)
    assert times.full == 64e3


def test_predictor_is_part_of_the_time(tiny, monkeypatch):
    clock = [0.0]

    def take(seconds):
        clock[0] += seconds

    engine = SimpleNamespace(
        predict_resolution=lambda x: take(10), forward_at=lambda x, j: take(tiny.resolutions[j]))
    monkeypatch.setattr('timm_drnet.deploy.stopwatch.time', SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(module, '_fast', lambda model: engine)
    times = Network(tiny).look(PHOTOS[0]).times
    assert times == module.Times((74e3, 58e3, 42e3), 64e3, steady=True)


def test_a_busy_machine_is_told(cascade, monkeypatch):
    seconds = iter(range(10_000))
    monkeypatch.setattr(module, 'seconds_of', lambda run, device: next(seconds) ** 2)
    monkeypatch.setattr(module, '_fast', lambda model: model)
    assert not Network(cascade).look(PHOTOS[0]).times.steady


def test_a_backbone_that_cannot_be_folded_is_shown_as_it_is(cascade, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError('no graph')

    monkeypatch.setattr(module.DRNet, 'deploy', fail)
    assert Network(cascade).look(PHOTOS[0]).times.full > 0
