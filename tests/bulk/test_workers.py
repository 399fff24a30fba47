"""What a worker does apart from Ray: it tells what it begins before it opens the first image, and why it fails."""

import pyarrow as pa
import pytest
import torch
from PIL import Image

from timm_drnet.bulk.listing import Location
from timm_drnet.bulk.workers import ClassifyingWorker, DecodedClassifyingWorker, DecodingWorker, work_unit


class Actor:
    """Stands for the actor that counts attempts: notes what it is told."""

    def __init__(self, events):
        self._events = events

    def __getattr__(self, name):
        class Method:
            remote = staticmethod(lambda *args: self._events.append((name, *args)))

        return Method


@pytest.fixture
def events(monkeypatch, tiny):
    """What happens, in order; Ray's store holds the very objects. Image 10 cannot be read, for no fault of its own."""
    import ray

    events = []
    monkeypatch.setattr('timm_drnet.bulk.engine.deploy', lambda model: model)  # it would measure for seconds
    monkeypatch.setattr(ray, 'get', lambda x: x)

    def loader(model, normalize=True, reducing_gap=None):
        def load(path):
            events.append(path)
            if path == '/10.jpg':
                raise TimeoutError('no answer\nin a minute')
            return torch.zeros(3, 64, 64, dtype=torch.float32 if normalize else torch.uint8)

        return load

    def classify(model, images, batch_size, device, normalize):
        choices = torch.tensor([0 for _ in images])
        return choices, torch.zeros(len(choices), model.num_classes)

    monkeypatch.setattr('timm_drnet.bulk.workers.image_loader', loader)
    monkeypatch.setattr('timm_drnet.bulk.workers.classify_grouped', classify)
    return events


@pytest.fixture
def work(tiny, events):
    """Function that has a worker of some kind do two units of three images."""
    before = torch.get_num_threads()

    def work(kind, threads, starts):
        if kind == 'classify':
            worker = ClassifyingWorker(tiny, Actor(events), 'image', 1, 2, threads, 'cpu')
        else:
            worker = DecodingWorker(tiny, Actor(events), 'image', threads)
        units = pa.Table.from_pylist([
            work_unit(first, [Location(f'/{n}.jpg', None) for n in range(first, first + 3)]) for first in starts])
        return list(worker(units))

    yield work
    torch.set_num_threads(before)


@pytest.mark.parametrize('threads', [1, 2])
@pytest.mark.parametrize('kind', ['classify', 'decode'])
def test_work_is_announced_before_its_first_image(work, events, threads, kind):
    assert len(work(kind, threads, (3, 6))) == 2
    assert events[0] == ('begin', f'{kind} 3', '3 to 5 of the inputs, from /3.jpg on')
    assert set(events[1:4]) == {'/3.jpg', '/4.jpg', '/5.jpg'}
    assert events[4] == ('begin', f'{kind} 6', '6 to 8 of the inputs, from /6.jpg on')
    assert len(events) == 8


@pytest.mark.parametrize('kind', ['classify', 'decode'])
def test_worker_tells_why_it_fails(work, events, kind):
    with pytest.raises(TimeoutError):
        work(kind, 1, (6, 9))
    assert events[-1] == ('fail', 'images 9 to 11 of the inputs, from /9.jpg on: TimeoutError: no answer')


def test_worker_tells_why_it_does_not_start(work, events, monkeypatch):
    def fail(model):
        raise torch.OutOfMemoryError('out of memory\nby far')

    monkeypatch.setattr('timm_drnet.bulk.engine.deploy', fail)
    with pytest.raises(torch.OutOfMemoryError):
        work('classify', 1, (6,))
    assert events == [
        ('fail', 'a worker could not start: OutOfMemoryError: out of memory; use a smaller batch size')]


def test_pixels_decoded_by_another_worker_give_the_same(tiny, monkeypatch, tmp_path):
    import ray

    monkeypatch.setattr('timm_drnet.bulk.engine.deploy', lambda model: model)
    monkeypatch.setattr(ray, 'get', lambda x: x)
    paths = [tmp_path / f'{n}.png' for n in range(4)]
    for n, path in enumerate(paths):
        Image.effect_mandelbrot((90, 70), (-2 + n / 4, -1.5, 1, 1.5), 50).convert('RGB').save(path)
    paths[2].write_text('no image')
    units = pa.Table.from_pylist([work_unit(7, [Location(str(path), None) for path in paths])])
    common, threads = (tiny, Actor([]), 'image'), torch.get_num_threads()
    [expected] = ClassifyingWorker(*common, 2, 2, threads, 'cpu')(units)
    [decoded] = DecodingWorker(*common, threads)(units)
    assert decoded['pixels'].dtype == 'uint8'
    [answers] = DecodedClassifyingWorker(*common, 2, 2, threads, 'cpu')(decoded)
    assert answers.drop(['began']).equals(expected.drop(['began']))
    assert answers['position'].to_pylist() == [7, 8, 9, 10]
    assert [error is None for error in answers['error'].to_pylist()] == [True, True, False, True]
