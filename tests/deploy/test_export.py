"""The folder of an export: what it holds, and that a failed one leaves nothing."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import onnx
import pytest
import torch
from timm.data import resolve_data_config
from torch import nn

import timm_drnet
from timm_drnet.data import files, pixels
from timm_drnet.deploy import arrays, export, onnx_runner, preprocessing, runtimes
from timm_drnet.deploy import manifest as manifest_module
from timm_drnet.deploy.export import ExportError, check_target
from timm_drnet.deploy.export import export_model as export_with_costs
from timm_drnet.deploy.manifest import manifest_digest


def export_model(model, out, *args, **kwargs):
    """Export with the model's own costs."""
    return export_with_costs(model, out, timm_drnet.cost_table(model), *args, **kwargs)


def in_training(model):
    """A model in training mode with momentum in its norms: the state in which an export must not touch it."""
    return model.train()


def test_folder_of_onnx(make_tiny, shake, tmp_path):
    model = in_training(shake(make_tiny(resolutions=(64, 32))))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    manifest = export_model(model, tmp_path / 'out', labels=list('abcde'), name='a name', license='mit')
    written = {path.name for path in (tmp_path / 'out').iterdir()}
    sources = {
        'onnx_runner.py': onnx_runner, 'arrays.py': arrays, 'preprocessing.py': preprocessing,
        'manifest.py': manifest_module, 'runtimes.py': runtimes, 'pixels.py': pixels,
        'files.py': files}
    assert written == {'predictor.onnx', 'branch_64.onnx', 'branch_32.onnx', 'manifest.json', 'README.md', *sources}
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    for name, module in sources.items():
        assert (tmp_path / 'out' / name).read_bytes() == Path(module.__file__).read_bytes()
    assert json.loads((tmp_path / 'out' / 'manifest.json').read_text()) == manifest
    assert manifest['sha256'] == manifest_digest(manifest)
    operators = [node.name for node in onnx.load(tmp_path / 'out' / 'branch_32.onnx').graph.node]
    assert 'layer2.0.downsample.1/Conv' in operators  # its module in timm's network
    assert len({*operators}) == len(operators)

    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    sides = {'predictor.onnx': 32, 'branch_64.onnx': 64, 'branch_32.onnx': 32}
    for entry in (manifest['files']['predictor'], *manifest['files']['branches']):
        content = (tmp_path / 'out' / entry['name']).read_bytes()
        side = sides.pop(entry['name'])
        assert entry == {
            'name': entry['name'], 'side': side, 'size': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
        program = onnx.load_from_string(content)
        onnx.checker.check_model(program, full_check=True)
        (given,), (result,) = program.graph.input, program.graph.output
        batch, *shape = given.type.tensor_type.shape.dim
        assert batch.dim_param  # any number
        assert [d.dim_value for d in shape] == [3, side, side]
        same_batch, outputs = result.type.tensor_type.shape.dim
        assert same_batch == batch
        assert outputs.dim_value == (2 if entry['name'].startswith('predictor') else 5)
        assert 'BatchNormalization' not in {node.op_type for node in program.graph.node}
        assert b'.py' not in content  # no paths of this machine
    assert not sides

    assert manifest['model'] == 'a name'
    assert manifest['license'] == 'mit'
    assert (manifest['stage'], manifest['resolutions'], manifest['num_classes']) == ('joint', [64, 32], 5)
    assert (manifest['router'], manifest['thresholds']) == ('predictor', [])
    assert manifest['labels'] == list('abcde')
    config = resolve_data_config({'input_size': (3, 64, 64)}, model=model)
    assert manifest['preprocessing'] == json.loads(json.dumps(config))
    costs = timm_drnet.cost_table(model)
    assert [row['total_flops'] for row in manifest['costs']] == [row.total_flops for row in costs]
    for package in ('torch', 'timm', 'timm-drnet', 'onnx', 'onnxscript', 'onnxruntime'):
        assert manifest['versions'][package] == importlib.metadata.version(package)


def test_opset_and_weights_in_half_precision(make_tiny, shake, tmp_path):
    model = shake(make_tiny(resolutions=(32,), stage='pretrain')).eval()
    expected = model.half().float()(torch.ones(1, 3, 32, 32)).detach()
    (tmp_path / 'out').mkdir()  # an empty folder is as good as none
    export_model(model.half(), tmp_path / 'out', opset=18)
    assert next(model.parameters()).dtype == torch.float16
    program = onnx.load(tmp_path / 'out' / 'branch_32.onnx')
    assert [entry.version for entry in program.opset_import if not entry.domain] == [18]
    logits = timm_drnet.OnnxDRNet(tmp_path / 'out')(torch.ones(1, 3, 32, 32).numpy())
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-5)


def test_folder_of_torch(make_tiny, tmp_path):
    model = make_tiny(stage='pretrain', resolutions=(32,), num_classes=0)
    manifest = export_model(model, tmp_path / 'out', 'torch')
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'branch_32.pt2', 'manifest.json', 'README.md'}
    assert manifest['files']['predictor'] is None
    assert manifest['labels'] == []
    assert manifest['model'] == 'drnet'
    assert manifest['license'] is None
    assert set(manifest['versions']) == {'torch', 'timm', 'timm-drnet'}


def write_nothing(module, x, path):
    path.write_bytes(b'half of it')
    raise RuntimeError('Failed to do it.\nA long explanation.') from ValueError('the root of it\nmore')


def interrupt(module, x, path):
    raise KeyboardInterrupt


def fill_the_disk(module, x, path):
    raise OSError(28, 'No space left on device')


@pytest.mark.parametrize(('write', 'error', 'told'), [
    (write_nothing, ExportError, r'^predictor does not export: the root of it$'),
    (interrupt, KeyboardInterrupt, None),
    (fill_the_disk, OSError, 'No space left'),
])
def test_failure_leaves_nothing(make_tiny, tmp_path, monkeypatch, write, error, told):
    monkeypatch.setattr(export, '_write_program', write)
    with pytest.raises(error, match=told):
        export_model(make_tiny(), tmp_path / 'out', 'torch')
    assert not list(tmp_path.iterdir())


def test_folder_that_fills_meanwhile_is_left_alone(make_tiny, tmp_path, monkeypatch):
    write = export._write_program
    (tmp_path / 'out').mkdir()

    def write_and_disturb(module, x, path):
        write(module, x, path)
        (tmp_path / 'out' / 'mine').touch()

    monkeypatch.setattr(export, '_write_program', write_and_disturb)
    with pytest.raises(OSError, match='not empty'):
        export_model(make_tiny(stage='pretrain', resolutions=(32,)), tmp_path / 'out', 'torch')
    assert [path.name for path in tmp_path.rglob('*')] == ['out', 'mine']


@pytest.mark.parametrize('harm', ['weight', 'nan'])
def test_program_that_differs_is_refused(make_tiny, tmp_path, monkeypatch, harm):
    fold = export.fold_norms

    def fold_wrongly(module):
        folded = fold(module)
        parameter = next(folded.parameters())
        if harm == 'nan':
            parameter.fill_(torch.nan)
        else:
            parameter.mul_(1.1)
        return folded

    monkeypatch.setattr(export, 'fold_norms', fold_wrongly)
    with pytest.raises(ExportError, match=r'^predictor\.pt2 does not do what predictor does'):
        export_model(make_tiny(), tmp_path / 'out', 'torch')
    assert not list(tmp_path.iterdir())


class DependsOnValues(nn.Module):
    """Takes its way by the values of its input, which no graph can."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    """Works at every batch size but exports at one."""

    def forward(self, x):
        return x.reshape(int(x.shape[0]) * 1, *x.shape[1:]) if x.shape[0] == 2 else x + 0


@pytest.mark.parametrize(('module', 'told'), [
    (DependsOnValues(), 'branch_32 does not export: .*([Dd]ata|control flow)'),
    (FixedBatch(), 'branch_32 does not export: '),
])
def test_model_that_does_not_export(make_tiny, tmp_path, module, told):
    model = make_tiny(stage='pretrain', resolutions=(32,))
    model.backbone.layer1 = module
    with pytest.raises(ExportError, match=told):
        export_model(model, tmp_path / 'out', 'torch')
    assert not list(tmp_path.iterdir())


def test_feature_maps_and_foreign_norms_are_refused(make_tiny, tmp_path):
    with pytest.raises(ExportError, match=r'branch_64 gives feature maps.*reset_classifier'):
        export_model(make_tiny(stage='pretrain', global_pool='', num_classes=0), tmp_path / 'out', 'torch')
    model = make_tiny(stage='pretrain')
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    with pytest.raises(ExportError, match='branch_64 does not export: The norm .* has no running statistics'):
        export_with_costs(model, tmp_path / 'out', (), 'torch')


def test_labels_must_fit(make_tiny, tmp_path):
    with pytest.raises(ValueError, match='3 labels for a model of 5 classes'):
        export_model(make_tiny(), tmp_path / 'out', 'torch', labels=list('abc'))


@pytest.mark.parametrize(('name', 'told'), [
    ('file', 'this is a file'),
    ('link', 'this is a file or a link'),
    ('full', 'not empty'),
    ('nowhere/out', 'no folder .*nowhere; create it first'),
    ('.', 'cannot be replaced'),
])
def test_targets(tmp_path, monkeypatch, name, told):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    Path('file' if name != '.' else '../file').touch()
    if name != '.':
        Path('link').symlink_to('nowhere')
        Path('full').mkdir()
        Path('full/file').touch()
    with pytest.raises(ValueError, match=f'Invalid out {name}: .*{told}'):
        check_target(name)


def test_target_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_target('out') == tmp_path / 'out'
    assert check_target('out/') == tmp_path / 'out'


@pytest.mark.parametrize(('format', 'opset'), [('onnx', 17), ('onnx', 999), ('onnx', -1), ('torch', 20)])
def test_opsets(tmp_path, format, opset):
    with pytest.raises(ValueError, match=f'Invalid opset {opset}: '):
        check_target(tmp_path / 'out', format, opset)


def test_formats(tmp_path):
    with pytest.raises(ValueError, match=r"Invalid format 'jit': use one of 'onnx', 'torch'"):
        check_target(tmp_path / 'out', 'jit')


def test_missing_packages(tmp_path, monkeypatch):
    find = export.importlib.util.find_spec
    monkeypatch.setattr(
        export.importlib.util, 'find_spec', lambda name: None if name.startswith('onnxs') else find(name))
    with pytest.raises(ImportError, match=r'needs onnxscript: pip install "timm-drnet\[onnx\]"'):
        check_target(tmp_path / 'out')
    assert check_target(tmp_path / 'out', 'torch')
