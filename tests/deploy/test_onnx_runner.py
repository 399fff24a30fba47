"""The exported model in ONNX Runtime: equal to the PyTorch model, without PyTorch."""

import ast
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from timm.data import create_transform
from tiny_models import shake

import timm_drnet
from timm_drnet.data import files, pixels
from timm_drnet.data.pixels import UnreadableImageError, open_image
from timm_drnet.data.reading import image_loader
from timm_drnet.deploy import arrays, manifest, onnx_engine, onnx_runner, preprocessing, runtimes
from timm_drnet.deploy.arrays import resize
from timm_drnet.deploy.export import export_model
from timm_drnet.deploy.manifest import InvalidExportError, manifest_digest
from timm_drnet.deploy.onnx_runner import OnnxDRNet
from timm_drnet.deploy.runtimes import RUNTIMES
from timm_drnet.evaluate.prediction import predict_images

PHOTOS = sorted((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg'))


@pytest.fixture(scope='module')
def model():
    """A tiny model whose norms all differ, and that sends the example photographs to 64, 48, 32, 64, ... px."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), predictor='inverted_residual', predictor_size=40, num_classes=5).eval()
    shake(model)
    with torch.no_grad():
        x = F.interpolate(torch.stack([image_loader(model)(path) for path in PHOTOS]), (40, 40), mode='bilinear')
        features = model.predictor.forward_head(model.predictor.forward_features(x), pre_logits=True)
        mean = features.mean(dim=0)
        wanted = F.one_hot(torch.arange(len(x)) % 3, 3).float()
        weight = (torch.linalg.pinv(features - mean) @ (wanted - wanted.mean(dim=0))).T
        model.predictor.classifier.weight.copy_(weight)
        model.predictor.classifier.bias.copy_(-weight @ mean)
    return model


@pytest.fixture(scope='module')
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exports') / 'tiny'
    export_model(model, folder, timm_drnet.cost_table(model), labels=['alpha', 'beta', 'gamma', 'delta', 'epsilon'])
    return folder


@pytest.fixture
def runner(folder, request):
    return OnnxDRNet(folder, threads=1, runtime=getattr(request, 'param', 'onnxruntime'))


in_both_runtimes = pytest.mark.parametrize('runner', RUNTIMES, indirect=True)


@pytest.fixture(scope='module')
def photos(model):
    """The example photographs as the package prepares them, (12, 3, 64, 64)."""
    return torch.stack([image_loader(model)(path) for path in PHOTOS])


@pytest.fixture
def copied(folder, tmp_path):
    """A copy to do harm to."""
    return shutil.copytree(folder, tmp_path / 'copy')


def rewrite_manifest(folder, **changes):
    """Change a manifest as a faithful export would have written it."""
    path = folder / 'manifest.json'
    manifest = {**json.loads(path.read_text()), **changes}
    manifest['sha256'] = manifest_digest(manifest)
    path.write_text(json.dumps(manifest))


# Equal to the model.


@torch.no_grad()
@in_both_runtimes
def test_photographs_get_the_same_choices_and_logits(model, runner, photos):
    expected = model.predict_resolution(photos)
    assert expected.tolist() == [0, 1, 2] * 4
    choice = runner.predict_resolution(photos.numpy())
    assert choice.dtype == np.int64
    assert choice.tolist() == expected.tolist()
    logits = runner(photos.numpy())
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, model(photos).numpy(), rtol=0, atol=1e-5)
    assert np.ptp(logits, axis=0).min() > 1e-2  # they differ from image to image


@torch.no_grad()
@pytest.mark.parametrize('size', [32, 64, 150])
def test_images_of_any_size(model, runner, images, size):
    x = images(5, size)
    choices = torch.tensor([2, 0, 1, 0, 2])
    for choice in (0, 1, np.int64(2), choices):
        at = choice.numpy() if torch.is_tensor(choice) else choice
        choice = choice if torch.is_tensor(choice) else int(choice)
        np.testing.assert_allclose(
            runner.forward_at(x.numpy(), at), model.forward_at(x, choice).numpy(), rtol=0, atol=1e-4)
    assert runner.predict_resolution(x.numpy()).tolist() == model.predict_resolution(x).tolist()


@torch.no_grad()
@in_both_runtimes
def test_one_image_and_half_precision(model, runner, photos):
    np.testing.assert_allclose(runner(photos[4:5].numpy()), model(photos[4:5]).numpy(), rtol=0, atol=1e-5)
    half = photos.half().float()
    np.testing.assert_array_equal(runner(photos.half().numpy()), runner(half.numpy()))


def test_pretrain_stage_runs_at_the_largest(runner, copied, photos):
    files = json.loads((copied / 'manifest.json').read_text())['files']
    rewrite_manifest(copied, stage='pretrain', files={**files, 'predictor': None})
    (copied / 'predictor.onnx').unlink()
    pretrained = OnnxDRNet(copied, threads=1)
    x = photos[:3].numpy()
    assert pretrained.predict_resolution(x).tolist() == [0, 0, 0]
    np.testing.assert_array_equal(pretrained(x), runner.forward_at(x, 0))
    (found, *_) = pretrained.classify(PHOTOS[:1])
    assert (found.resolution, found.flops) == (64, pretrained.manifest['costs'][0]['backbone_flops'])


def test_folders_of_the_first_format_still_run(runner, copied, photos):
    old = json.loads((copied / 'manifest.json').read_text())
    del old['router'], old['thresholds'], old['precision']
    old['format_version'] = 1
    old['sha256'] = manifest_digest(old)
    (copied / 'manifest.json').write_text(json.dumps(old))
    np.testing.assert_array_equal(OnnxDRNet(copied, threads=1)(photos.numpy()), runner(photos.numpy()))


@torch.no_grad()
def test_cascade_climbs(make_cascade, images, tmp_path):
    model, x = make_cascade(), images(30)
    export_model(model, tmp_path / 'out', timm_drnet.cost_table(model))
    middle, low = model.args.thresholds
    for runtime, (thresholds, stopped) in itertools.product(RUNTIMES, (
            ((middle, low), [10, 10, 10]), ((middle, None), None), ((None, 2), [30]), ((0, 0), [0, 0, 30]))):
        model.args = dataclasses.replace(model.args, thresholds=thresholds)
        rewrite_manifest(tmp_path / 'out', thresholds=thresholds)
        costs = timm_drnet.cost_table(model)
        runner = OnnxDRNet(tmp_path / 'out', threads=1, runtime=runtime)
        runner._branches = [Recorder(program) for program in runner._branches]
        logits, choice = model.classify(x)
        if stopped is not None:
            assert choice.bincount().tolist() == stopped
        assert runner.predict_resolution(x.numpy()).tolist() == choice.tolist()
        ran = [sum(shape[0] for shape in branch.shapes) for branch in runner._branches]
        assert ran == model.last_counts
        np.testing.assert_allclose(runner(x.numpy()), logits.numpy(), rtol=1e-5, atol=1e-4)
        runner.manifest['costs'] = [dataclasses.asdict(row) for row in costs]
        found = runner.classify(list(x.numpy()))
        assert [item.resolution for item in found] == [model.resolutions[j] for j in choice]
        assert [item.flops for item in found] == [costs[j].total_flops for j in choice]


def test_cascade_without_a_classifier_runs_at_the_largest(runner, copied, photos):
    files = json.loads((copied / 'manifest.json').read_text())['files']
    rewrite_manifest(
        copied, router='cascade', thresholds=[0.5, 0.5], num_classes=0, labels=[], files={**files, 'predictor': None})
    headless = OnnxDRNet(copied, threads=1)
    x = photos[:2].numpy()
    assert headless.predict_resolution(x).tolist() == [0, 0]
    np.testing.assert_array_equal(headless(x), runner.forward_at(x, 0))


def test_precision_that_fails_leaves_nothing_behind(model, folder, monkeypatch):
    """Else the float32 files would be taken for it the next time."""
    monkeypatch.setattr(onnx_engine, 'export_model', lambda model, out, costs: shutil.copytree(folder, out))

    def fail(*args):
        raise ValueError('no')

    with onnx_engine.Exports(model, timm_drnet.cost_table(model), torch.zeros(1, 3, 64, 64)) as exports:
        monkeypatch.setattr(onnx_engine, 'lower_files', fail)
        for _ in range(2):
            with pytest.raises(ValueError, match='no'):
                exports.folder('onnxruntime-int8')
        assert [path.name for path in exports.folder('onnxruntime').parent.iterdir()] == ['float32']


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_threads_share_a_runner(folder, images, runtime):
    shared = OnnxDRNet(folder, micro_batch=2, runtime=runtime)
    batches = [images(1 + seed % 5, 50 + seed, seed=seed).numpy() for seed in range(24)]
    choices = [np.arange(len(x)) % 3 for x in batches]
    other = OnnxDRNet(folder, micro_batch=2, runtime=runtime)
    alone = [other.forward_at(x, c) for x, c in zip(batches, choices, strict=True)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(shared.forward_at, batches, choices))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


# How batches are run.


class Recorder:
    """A program that remembers the shapes it was given."""

    def __init__(self, program):
        self.program = program
        self.shapes = []

    def __call__(self, x):
        self.shapes.append(x.shape)
        return self.program(x)


def test_each_image_runs_once_and_batches_are_cut_evenly(folder, images):
    x = images(13).numpy()
    choice = np.array([0, 2, 2, 2, 0, 2, 2, 2, 2, 2, 2, 0, 0])
    whole = OnnxDRNet(folder, micro_batch=13).forward_at(x, choice)
    cut = OnnxDRNet(folder, micro_batch=4)
    cut._branches = [Recorder(program) for program in cut._branches]
    cut._predictor = Recorder(cut._predictor)
    np.testing.assert_allclose(cut.forward_at(x, choice), whole, rtol=0, atol=1e-6)
    assert [branch.shapes for branch in cut._branches] == [[(4, 3, 64, 64)], [], [(3, 3, 32, 32)] * 3]
    cut.predict_resolution(x)
    assert cut._predictor.shapes == [(4, 3, 40, 40), (3, 3, 40, 40), (3, 3, 40, 40), (3, 3, 40, 40)]


@pytest.mark.parametrize(('size', 'new'), [(224, 168), (224, 112), (224, 128), (128, 96), (64, 48), (64, 40), (48, 48)])
def test_resize_is_torch_s(images, size, new):
    x = images(2, size)
    expected = F.interpolate(x, (new, new), mode='bilinear', align_corners=False)
    np.testing.assert_allclose(resize(x.numpy(), new), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize('size', [1, 2, 33, 97, 320])
@pytest.mark.parametrize('new', [1, 50, 224])
def test_resize_at_odd_sizes(images, size, new):
    x = images(1, size)
    # In float32, torch's own results depend on the number of threads by 1e-4 of such noise, so float64 decides.
    expected = F.interpolate(x.double(), (new, new), mode='bilinear', align_corners=False)
    np.testing.assert_allclose(resize(x.numpy(), new), expected, rtol=0, atol=3e-4)


# Images.


def save(path, image, **kwargs):
    image.save(path, **kwargs)
    return path


def scene(width=90, height=70):
    """Colours and edges in every direction."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, (x * y) % 256, (y % 16) * 16], axis=-1).astype(np.uint8))


@pytest.mark.parametrize('in_chans', [3, 1])
@pytest.mark.parametrize('config', [
    {},
    {'crop_pct': 0.875, 'interpolation': 'bilinear'},
    {'crop_pct': 0.8, 'crop_mode': 'squash'},
    {'crop_pct': 0.9, 'crop_mode': 'border'},
    {'crop_pct': 1.0, 'interpolation': 'lanczos', 'mean': (0.5,) * 3, 'std': (0.25, 0.2, 0.3)},
])
@pytest.mark.parametrize('size', [(90, 70), (70, 91), (64, 64), (33, 130), (31, 7), (71, 13)])
def test_images_are_prepared_as_timm_prepares_them(runner, tmp_path, size, config, in_chans):
    config = {**runner.manifest['preprocessing'], **config}
    config.update(
        input_size=(in_chans, *config['input_size'][1:]), mean=config['mean'][:in_chans], std=config['std'][:in_chans])
    runner.manifest = {**runner.manifest, 'preprocessing': config}
    image = scene(*size)
    expected = create_transform(**config)(image.convert('RGB' if in_chans == 3 else 'L'))
    for source in (image, save(tmp_path / 'x.png', image)):
        prepared = runner.prepare(source)
        assert prepared.dtype == np.float32
        np.testing.assert_array_equal(prepared, expected.numpy())


def odd_images():
    image = scene()
    grey = np.asarray(image.convert('L'))
    exif = Image.Exif()
    exif[0x0112] = 6
    transparent = image.copy()
    transparent.putalpha(Image.fromarray(np.tile(np.arange(90, dtype=np.uint8) * 2, (70, 1))))
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB')
    return {
        'photo.jpg': (image, {}), 'cmyk.jpg': (image.convert('CMYK'), {}), 'palette.png': (image.quantize(32), {}),
        'bits.png': (image.convert('1'), {}), 'transparent.png': (transparent, {}), 'lab.tif': (lab, {}),
        'grey_alpha.png': (transparent.convert('LA'), {}), 'turned.jpg': (image, {'exif': exif}),
        'deep.png': (Image.fromarray(grey.astype(np.uint16) * 257), {}),
        'float.tif': (Image.fromarray(grey.astype(np.float32) / 255), {}),
        'bad_exif.png': (image, {'exif': b'Exif\0\0 no TIFF header'}),
        'animation.gif': (image, {'save_all': True, 'append_images': [Image.new('RGB', image.size)]}),
        'large.jpg': (image.resize((1500, 900), Image.Resampling.BICUBIC), {}),
        'endless.png': (Image.new('L', (1, 50_000), 200), {}), 'long.png': (scene(3000, 40), {}),
    }


@pytest.mark.parametrize('name', odd_images())
def test_odd_files_are_read_as_the_package_reads_them(model, runner, tmp_path, name):
    image, options = odd_images()[name]
    path = save(tmp_path / name, image, **options)
    np.testing.assert_array_equal(runner.prepare(path), image_loader(model)(path).numpy())
    in_memory = runner.prepare(Image.open(path))
    if name != 'large.jpg':  # a file is decoded small, an image is what it is
        np.testing.assert_array_equal(in_memory, runner.prepare(path))
    else:
        np.testing.assert_allclose(in_memory, runner.prepare(path), rtol=0, atol=0.2)


def test_grey_models_read_grey(runner, tmp_path):
    config = {**runner.manifest['preprocessing'], 'input_size': (1, 64, 64), 'mean': (0.5,), 'std': (0.5,)}
    runner.manifest = {**runner.manifest, 'preprocessing': config}
    path = save(tmp_path / 'x.png', scene(64, 64))
    expected = np.asarray(open_image(path, 'L')) / 127.5 - 1
    runner.manifest['preprocessing']['crop_pct'] = 1.0
    np.testing.assert_allclose(runner.prepare(path), expected[None], atol=1e-6)
    config['input_size'] = (4, 64, 64)
    with pytest.raises(ValueError, match='4 channels'):
        runner.prepare(path)


@pytest.mark.parametrize(('content', 'reason'), [
    (b'', 'is empty'), (b'hello', 'not an image'), (PHOTOS[0].read_bytes()[:3000], 'truncated'), (None, 'No such'),
])
def test_unreadable_files_are_named(runner, tmp_path, content, reason):
    path = tmp_path / 'x.jpg'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason) as info:
        runner.prepare(path)
    assert str(path) in str(info.value)


def test_bombs_are_refused(runner, tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5000)
    with pytest.raises(UnreadableImageError, match=r'x\.png: the image has more than 5000 pixels.*scale'):
        runner.prepare(save(tmp_path / 'x.png', scene()))


def test_classify_is_what_predict_says(model, runner):
    expected = predict_images(model, PHOTOS, runner.labels, topk=2).images
    found = runner.classify(PHOTOS, topk=2, batch_size=5)
    assert [item.labels for item in found] == [item.labels for item in expected]
    assert [item.resolution for item in found] == [item.resolution for item in expected]
    assert [item.flops for item in found] == [item.flops for item in expected]
    np.testing.assert_allclose(
        [item.probabilities for item in found], [item.probabilities for item in expected], rtol=0, atol=1e-5)
    assert runner.classify(iter(map(Image.open, PHOTOS)), topk=2) == runner.classify(map(runner.prepare, PHOTOS), 2)
    assert runner.classify(PHOTOS[0]) == runner.classify([str(PHOTOS[0])])
    assert runner.classify([]) == []
    assert len(runner.classify(PHOTOS[0], topk=100)[0].labels) == 5


def test_classify_refuses_what_makes_no_sense(runner, photos):
    for name in ('topk', 'batch_size'):
        with pytest.raises(ValueError, match=f'{name} 0'):
            runner.classify(PHOTOS, **{name: 0})
    with pytest.raises(ValueError, match='not finite'):
        runner.classify([np.full_like(photos[0].numpy(), np.nan)])
    runner.labels = ()
    with pytest.raises(ValueError, match='no classifier'):
        runner.classify(PHOTOS)


# Bad input.


def test_bad_images_and_choices(runner, photos):
    x = photos[:2].numpy()
    no_number = np.where(x == x.max(), np.float32('nan'), x)
    for bad in (
            x[0], x[:0], x[:, :, :, 1:], x[:, :1], (x * 50).astype(np.uint8), np.empty((2, 3, 0, 0), np.float32),
            no_number):
        for call in (runner, runner.predict_resolution, lambda x: runner.forward_at(x, 0)):
            with pytest.raises(ValueError, match='Invalid input'):
                call(bad)
    for choice in (3, -1, np.array([0, 3]), np.array([0]), np.array([[0, 1]]), np.array([0.0, 1.0])):
        with pytest.raises(ValueError, match='Invalid choice'):
            runner.forward_at(x, choice)


def test_predictor_that_overflows(runner, photos):
    """As in half precision: a softmax would not notice, and an argmax routes."""
    x = photos[:6].numpy()
    chosen = runner.predict_resolution(x)
    predictor = runner._predictor

    def overflow(x):
        scores = predictor(x)
        scores[3, 0] = np.inf
        return scores

    runner._predictor = overflow
    assert runner.predict_resolution(x).tolist() == [*chosen[:3], -1, *chosen[4:]]
    for call in (runner, lambda x: runner.classify(list(x))):
        with pytest.raises(ValueError, match='Invalid choice -1: .* scores are not finite'):
            call(x)


def test_bad_arguments(folder):
    for name in ('threads', 'micro_batch'):
        with pytest.raises(ValueError, match=f'{name} 0'):
            OnnxDRNet(folder, **{name: 0})
    for providers in ([], ['NoExecutionProvider'], ['CPUExecutionProvider', 'NoExecutionProvider']):
        with pytest.raises(ValueError, match=r'Invalid providers .*: this ONNX Runtime has .*CPUExecutionProvider'):
            OnnxDRNet(folder, providers)


def test_providers_that_do_not_start(folder, images, monkeypatch):
    import onnxruntime

    with_options = OnnxDRNet(folder, [('CPUExecutionProvider', {'use_arena': '0'})])
    assert with_options(images(1).numpy()).shape == (1, 5)
    monkeypatch.setattr(onnxruntime.InferenceSession, 'get_providers', lambda self: ['OtherExecutionProvider'])
    with pytest.raises(ValueError, match='CPUExecutionProvider does not start'):
        OnnxDRNet(folder, ['CPUExecutionProvider'])


def test_runtimes_that_are_missing(folder, monkeypatch):
    with pytest.raises(ValueError, match="Invalid runtime 'tensorrt': use one of 'onnxruntime', 'openvino'"):
        OnnxDRNet(folder, runtime='tensorrt')
    with pytest.raises(ValueError, match='Invalid providers: OpenVINO has none'):
        OnnxDRNet(folder, ['CPUExecutionProvider'], runtime='openvino')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    assert OnnxDRNet(folder).runtime == 'openvino'
    for arguments in ({'runtime': 'onnxruntime'}, {'providers': ['CPUExecutionProvider']}):
        with pytest.raises(ImportError, match=r'onnxruntime is not installed: pip install "timm-drnet\[onnx\]"'):
            OnnxDRNet(folder, **arguments)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(ImportError, match=r'openvino is not installed: pip install "timm-drnet\[openvino\]"'):
        OnnxDRNet(folder, runtime='openvino')
    with pytest.raises(ImportError, match=r'pip install "timm-drnet\[onnx\]" or "timm-drnet\[openvino\]", or without'):
        OnnxDRNet(folder)


def edit_manifest(**changes):
    def harm(folder):
        path = folder / 'manifest.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return harm


def flip_byte(folder):
    path = folder / 'branch_48.onnx'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = folder / 'branch_64.onnx'
    path.write_bytes(path.read_bytes()[:-1])


def make_pipe(name):
    def harm(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return harm


def make_huge(name):
    """A hole that takes no room on the disk."""
    return lambda folder: os.truncate(folder / name, 2 ** 40)


def replace_with_garbage(folder):
    files = json.loads((folder / 'manifest.json').read_text())['files']
    files['predictor'].update(size=7, sha256=hashlib.sha256(b'garbage').hexdigest())
    (folder / 'predictor.onnx').write_bytes(b'garbage')
    rewrite_manifest(folder, files=files)


def rewrite(keys, change):
    """Change one entry as a faithful export would have written it; `change` makes the new value of the old."""

    def harm(folder):
        manifest = json.loads((folder / 'manifest.json').read_text())
        *groups, last = keys
        inner = manifest
        for key in groups:
            inner = inner[key]
        inner[last] = change(inner[last])
        rewrite_manifest(folder, **manifest)

    return harm


def drop(key):
    def harm(folder):
        manifest = json.loads((folder / 'manifest.json').read_text())
        del manifest[key]
        manifest['sha256'] = manifest_digest(manifest)
        (folder / 'manifest.json').write_text(json.dumps(manifest))

    return harm


def link_outside(name):
    """The same file, but elsewhere."""

    def harm(folder):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return harm


def swap_programs(folder):
    """Two branches in each other's place, both of which are as they were written."""
    files = json.loads((folder / 'manifest.json').read_text())['files']
    files['branches'].reverse()
    rewrite_manifest(folder, files=files)


# What a manifest can say that no export does, whoever wrote its checksum: for both runners.
LIES = [
    *(pytest.param(rewrite(['files', 'branches', 1, 'name'], name), r'its files\.branches is not', id=f'name {label}')
      for label, name in (
          ('above', lambda name: f'../copy/{name}'), ('absolute', lambda name: f'/{name}'), ('nul', lambda name: '\0'),
          ('number', lambda name: 5), ('empty', lambda name: ''))),
    *(pytest.param(drop(key), f'it has no {key}', id=f'no {key}')
      for key in ('resolutions', 'labels', 'costs', 'format_version')),
    (drop('files'), r'it has no files\.predictor'),
    (drop('preprocessing'), r'it has no preprocessing\.input_size'),
    (rewrite(['labels'], lambda labels: labels[:2]), 'its labels is not'),
    (rewrite(['labels'], lambda labels: 5), 'its labels is not'),
    (rewrite(['resolutions'], lambda sides: [str(side) for side in sides]), 'its resolutions is not'),
    (rewrite(['resolutions'], lambda sides: [*sides, 16]), r'its costs is not'),
    (rewrite(['router'], lambda router: 'lots'), 'its router is not'),
    (rewrite(['router'], lambda router: 'cascade'), 'its thresholds is not'),
    (rewrite(['thresholds'], lambda thresholds: ['high', None]), 'its thresholds is not'),
    (rewrite(['files'], lambda files: list(files)), r'it has no files\.predictor'),
    (rewrite(['files', 'predictor'], lambda entry: entry['name']), r'its files\.predictor is not'),
    (rewrite(['preprocessing', 'crop_pct'], lambda crop: 1e-5), r'its preprocessing\.crop_pct is not'),
    (rewrite(['preprocessing', 'std'], lambda std: [0, 0, 0]), r'its preprocessing\.std is not'),
    (rewrite(['preprocessing', 'mean'], lambda mean: 'abc'), r'its preprocessing\.mean is not'),
    (rewrite(['preprocessing', 'interpolation'], lambda name: 'bicubik'), r'its preprocessing\.interpolation is not'),
    (lambda folder: (folder / 'manifest.json').write_text('[' * 100_000), r'manifest\.json: not JSON'),
    (rewrite(['format_version'], lambda version: 10 ** 400), 'its format_version is not'),
    (rewrite(['costs', 0, 'total_flops'], lambda flops: 10 ** 400), 'its costs is not'),
    (rewrite(['preprocessing', 'input_size'], lambda size: [*map(float, size)]), r'its preprocessing\.input_size is'),
    (rewrite(['preprocessing', 'crop_pct'], lambda crop: 65), r'its preprocessing\.crop_pct is not'),
    (link_outside('manifest.json'), r'manifest\.json: a link to a place outside'),
    (make_pipe('manifest.json'), r'manifest\.json: a folder or device, not a file; give a folder'),
    (make_huge('manifest.json'), r'manifest\.json: of 1,099,511,627,776 bytes, too large for one; give a folder'),
]


@pytest.mark.parametrize(('harm', 'told'), [
    *LIES,
    (link_outside('branch_48.onnx'), r'branch_48\.onnx: a link to a place outside the folder; copy the file'),
    (swap_programs, r'branch_32\.onnx: not the program that manifest\.json describes, which takes .3, 64, 64.'),
    (shutil.rmtree, r'manifest\.json: No such file.*give a folder written by "timm-drnet export"'),
    (lambda folder: (folder / 'manifest.json').unlink(), r'manifest\.json: No such file.*give a folder'),
    (lambda folder: (folder / 'manifest.json').write_text('{'), r'manifest\.json: not JSON .*export the model again'),
    (lambda folder: (folder / 'manifest.json').write_bytes(b'\xff\x00'), r'manifest\.json: not JSON'),
    (lambda folder: (folder / 'manifest.json').write_text('[1]'), r'manifest\.json: not of an export; give a folder'),
    (edit_manifest(format='other'), r'manifest\.json: not of an export; give a folder'),
    (edit_manifest(format_version=3), r'manifest\.json: of format 3, .*knows 2; use the onnx_runner\.py in'),
    (edit_manifest(labels=list('abcde')), r'manifest\.json: changed since the export; copy it anew'),
    (edit_manifest(sha256=None), r'manifest\.json: changed since'),
    (lambda folder: rewrite_manifest(folder, runtime='torch'), r'--format torch; load it with timm_drnet\.Exported'),
    (lambda folder: (folder / 'branch_32.onnx').unlink(), r'branch_32\.onnx: No such file.*not complete: copy all'),
    (flip_byte, r'branch_48\.onnx: not the file that manifest\.json describes.*copy it anew'),
    (truncate, r'branch_64\.onnx: not the file that manifest\.json describes.*copy it anew'),
    (make_pipe('branch_64.onnx'), r'branch_64\.onnx: a folder or device, not a file; the export is not complete'),
    (make_huge('branch_64.onnx'), r'branch_64\.onnx: not the file that manifest\.json describes.*copy it anew'),
    (replace_with_garbage, r'predictor\.onnx: ONNX Runtime \S+ cannot load it .*--opset'),
    (rewrite(['precision'], lambda precision: 'int4'), 'its precision is not'),
])
def test_harmed_folders_are_refused(copied, harm, told):
    harm(copied)
    with pytest.raises(InvalidExportError, match=told) as info:
        OnnxDRNet(copied)
    assert len(str(info.value).splitlines()) == 1


# Alone.


@pytest.mark.parametrize(('module', 'others'), [
    (pixels, {'PIL', 'numpy'}), (files, {'PIL'}), (manifest, {'PIL'}), (runtimes, {'numpy', 'onnxruntime', 'openvino'}),
    (arrays, {'numpy'}), (preprocessing, {'PIL', 'numpy', 'arrays', 'pixels', '..data', '.arrays'}),
    (onnx_runner, {
        'PIL', 'numpy', 'arrays', 'files', 'pixels', 'manifest', 'preprocessing', 'runtimes', '..data', '.arrays',
        '.manifest', '.preprocessing', '.'})])
def test_what_stands_beside_an_export_imports_little(module, others):
    tree = ast.parse(Path(module.__file__).read_text(encoding='utf-8'))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names |= {'.' * node.level + (node.module or '').partition('.')[0] for node in froms}
    assert names - {'importlib.util'} - sys.stdlib_module_names == others


def run_alone(script, *arguments, hide):
    """Run a script as a user does, where nothing of PyTorch can be imported."""
    for name in ('torch', 'torchvision', 'timm', 'timm_drnet'):
        (hide / f'{name}.py').write_text('raise ImportError')
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, check=False,
        env={**os.environ, 'PYTHONPATH': str(hide)})


def test_it_runs_where_pytorch_cannot_be_imported(folder, model, tmp_path):
    photos = tmp_path / 'photos'
    (photos / 'more').mkdir(parents=True)
    paths = [Path(shutil.copy(path, photos / 'more')) for path in PHOTOS[:3]]
    (photos / 'more' / 'round').symlink_to(photos, target_is_directory=True)
    broken = photos / 'broken.jpg'
    for path in (broken, photos / '.hidden.jpg', photos / 'notes.txt'):
        path.write_bytes(b'no image')
    arguments = (photos, '--json', '--topk', 3, '--threads', 1)
    done = run_alone(folder / 'onnx_runner.py', *arguments, hide=tmp_path)
    assert done.returncode == 1
    assert [line.split(': ')[1] for line in done.stderr.splitlines()] == [f'skipped {broken}']
    found = json.loads(done.stdout)
    labels = ('alpha', 'beta', 'gamma', 'delta', 'epsilon')
    expected = predict_images(model, paths, labels, topk=3).images
    for item, image in zip(found, expected, strict=True):
        assert (item['path'], item['resolution'], item['flops']) == (str(image.path), image.resolution, image.flops)
        assert tuple(item['labels']) == image.labels
        assert item['probabilities'] == pytest.approx(image.probabilities, abs=1e-5)


def test_runner_that_ends_in_another_thread(folder, tmp_path):
    """OpenVINO gives the first thread a stack for signals; Python's handlers and crash reports run on it."""
    script = tmp_path / 'ends.py'
    script.write_text(
        'import faulthandler, signal, subprocess, sys, threading\n'
        'sys.path.insert(0, sys.argv[1])\n'
        'from onnx_runner import OnnxDRNet\n'
        'faulthandler.enable()\n'
        'signal.signal(signal.SIGCHLD, lambda *args: None)\n'
        'runners = [OnnxDRNet(sys.argv[1], runtime="openvino")]\n'
        'thread = threading.Thread(target=runners.clear)\n'
        'thread.start()\n'
        'thread.join()\n'
        'subprocess.run([sys.executable, "-c", ""])\n'
        'print("alive")\n')
    done = run_alone(script, folder, hide=tmp_path)
    assert (done.returncode, done.stdout) == (0, 'alive\n'), done.stderr


def test_command_line(runner, folder, capsys):
    assert onnx_runner.main([*map(str, PHOTOS[:2]), '--folder', str(folder), '--batch-size', '1']) == 0
    expected = runner.classify(PHOTOS[:2])
    assert capsys.readouterr().out.splitlines() == [
        f'{path}  {item.resolution} px  {item.labels[0]} {item.probabilities[0]:.1%}'
        for path, item in zip(PHOTOS, expected, strict=False)]


@pytest.mark.parametrize(('arguments', 'told'), [
    (['--folder', 'nowhere'], 'manifest.json: No such file'),
    (['nowhere'], 'nowhere: no such file or folder'),
    (['--topk', '0'], 'topk 0'),
    (['--batch-size', '0'], 'batch_size 0'),
    (['--threads', '-1'], 'threads -1'),
    (['--provider', 'warp'], "providers ['warp']"),
])
def test_command_line_refuses_bad_input_in_one_line(folder, capsys, arguments, told):
    assert onnx_runner.main(['--folder', str(folder), *arguments, str(PHOTOS[0])]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert told in err
    assert len(err.splitlines()) == 1
