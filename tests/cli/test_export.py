"""``timm-drnet export`` from its arguments to a folder that runs."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import timm_drnet
from timm_drnet.cli import export as command
from timm_drnet.cli import main
from timm_drnet.evaluate.prediction import predict_images

PHOTOS = sorted((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg'))
MODEL_KWARGS = {
    'backbone': 'test_resnet', 'resolutions': (48, 32), 'predictor': 'inverted_residual', 'predictor_size': 32}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model('drnet', num_classes=5, **MODEL_KWARGS).eval()
    path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def run(weights, capsys):
    """Export the tiny model; returns exit code, stdout and stderr."""
    def run(*arguments, **kwargs):
        code = main([
            'export', 'drnet', *map(str, arguments), '--num-classes', '5', '--checkpoint', str(weights),
            '--model-kwargs', *(f'{k}={v}'.replace(' ', '') for k, v in {**MODEL_KWARGS, **kwargs}.items())])
        return code, *capsys.readouterr()

    return run


def test_onnx(run, weights, tmp_path):
    labels = tmp_path / 'labels.txt'
    labels.write_text('\ufeffzero\none\ntwo\nthree \nfour\n\n', encoding='utf-8')
    code, out, _ = run(tmp_path / 'out', '--labels', labels)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ['drnet', 'in', str(tmp_path / 'out')]
    assert [line[:3] for line in lines[2:5]] == [
        ['predictor.onnx', '32', 'px'], ['branch_48.onnx', '48', 'px'], ['branch_32.onnx', '32', 'px']]
    sizes = [(tmp_path / 'out' / line[0]).stat().st_size / 1e6 for line in lines[2:5]]
    assert [float(line[3]) for line in lines[2:5]] == pytest.approx(sizes, abs=0.051)
    assert float(lines[5][0]) == pytest.approx(sum(sizes), abs=0.051)
    assert lines[6][-3:] == ['python', str(tmp_path / 'out' / 'onnx_runner.py'), 'IMAGE']

    model = timm.create_model('drnet', num_classes=5, checkpoint_path=str(weights), **MODEL_KWARGS).eval()
    expected = predict_images(model, PHOTOS, ['zero', 'one', 'two', 'three', 'four']).images
    runner = timm_drnet.OnnxDRNet(tmp_path / 'out')
    found = runner.classify(PHOTOS)
    assert [(item.labels, item.resolution) for item in found] == [(item.labels, item.resolution) for item in expected]
    assert runner.manifest['license'] is None  # a checkpoint's is not known


@pytest.mark.parametrize('name', ['out', 'caf\udce9\x1b'])  # as Python has bytes that are no UTF-8
def test_torch_as_json(run, tmp_path, name):
    try:
        (tmp_path / name).mkdir()
    except (OSError, UnicodeError):
        pytest.skip('the file system has no such names')
    code, out, _ = run(tmp_path / name, '--format', 'torch', '--json', stage='pretrain')
    assert code == 0
    assert json.loads(out) == timm_drnet.ExportedDRNet(tmp_path / name).manifest
    assert json.loads(out)['model'] == 'drnet'
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_int8_cascade(tmp_path, capsys):
    kwargs = {'backbone': 'test_resnet', 'resolutions': (48, 40, 32), 'router': 'cascade', 'thresholds': (None, 0.5)}
    save_file(timm.create_model('drnet', num_classes=5, **kwargs).state_dict(), tmp_path / 'weights.safetensors')
    shutil.copytree(PHOTOS[0].parent, tmp_path / 'photos')
    (tmp_path / 'photos' / 'broken.jpg').write_bytes(b'no image')
    code = main([
        'export', 'drnet', str(tmp_path / 'out'), '--checkpoint', str(tmp_path / 'weights.safetensors'),
        '--precision', 'int8', '--calibrate', str(tmp_path / 'photos'),
        '--model-kwargs', *(f'{k}={v}'.replace(' ', '') for k, v in kwargs.items())])
    out, err = capsys.readouterr()
    assert code == 1, err
    assert re.search(r'export: skipped .*broken\.jpg: not an image', err)
    assert 'cascade: images stop at 32 px from 0.500 on\nnot exported, as no image stops there: 40 px\n' in out
    assert not (tmp_path / 'out/branch_40.onnx').exists()
    manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
    assert manifest['quantization'] == {'images': len(PHOTOS), 'held_out': 0}
    assert timm_drnet.OnnxDRNet(tmp_path / 'out').classify(PHOTOS[:2])


def test_pretrain_stage_is_told(run, tmp_path):
    code, out, _ = run(tmp_path / 'out', '--format', 'torch', stage='pretrain')
    assert code == 0
    assert 'pretrain stage: there is no predictor, every image runs at 48 px' in out
    assert 'onnx_runner' not in out


def test_licence_of_registered_weights(tmp_path, capsys, monkeypatch):
    told = {}
    monkeypatch.setattr(command, 'export_model', lambda *args, **kwargs: told.update(kwargs) or {})
    assert main(['export', timm_drnet.DEFAULT_MODEL, str(tmp_path / 'out'), '--json']) == 0
    assert told['license'] == 'apache-2.0'


@pytest.mark.parametrize(('arguments', 'told'), [
    (['{tmp}'], 'Invalid out {tmp}: this folder is not empty'),
    (['{tmp}/nowhere/out'], 'no folder {tmp}/nowhere'),
    (['{tmp}/out', '--opset', '3'], 'opset 3'),
    (['{tmp}/out', '--labels', '{tmp}/nowhere.txt'], '--labels {tmp}/nowhere.txt: No such file'),
    (['{tmp}/out', '--labels', '{photo}'], '--labels {photo}: not a text file'),
    (['{tmp}/out', '--labels', '{tmp}/two.txt'], '2 labels for a model of 5 classes'),
    (['{tmp}/out', '--precision', 'int8'], '--precision int8 needs images to --calibrate'),
    (['{tmp}/out', '--precision', 'bf16', '--calibrate', '{photo}'], '--calibrate needs --precision int8'),
    (['{tmp}/out', '--precision', 'int8', '--calibrate', '{tmp}/no'], '--calibrate {tmp}/no: {tmp}/no: no such file'),
    (['{tmp}/out', '--precision', 'fp16', '--format', 'torch'], "precision 'fp16': use format onnx"),
])
def test_bad_input_is_one_clear_line(run, tmp_path, arguments, told):
    (tmp_path / 'two.txt').write_text('a\nb\n')
    names = {'tmp': tmp_path, 'photo': PHOTOS[0]}
    code, out, err = run(*(argument.format(**names) for argument in arguments))
    assert (code, out) == (2, '')
    assert err.startswith('timm-drnet export: ')
    assert told.format(**names) in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['two.txt']


@pytest.mark.parametrize(('arguments', 'told'), [
    (['resnet10t', '--checkpoint', 'x'], 'not a DRNet'),
])
def test_bad_models(tmp_path, capsys, arguments, told):
    model, *rest = arguments
    assert main(['export', model, str(tmp_path / 'out'), *rest]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert told in err
    assert len(err.splitlines()) == 1


def test_full_disk_leaves_nothing(run, tmp_path):
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        code, out, err = run(tmp_path / 'out', '--format', 'torch')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (code, out) == (2, '')
    assert f'{tmp_path / "out"}: File too large' in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
