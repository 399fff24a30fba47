"""Programs of torch.export: equal to the model they come from."""

import hashlib
import json

import pytest
import torch

import timm_drnet
from timm_drnet.deploy.export import export_model
from timm_drnet.deploy.manifest import InvalidExportError, manifest_digest


@pytest.fixture
def exported(tiny, images, spread_choices, tmp_path):
    """Function that exports a model; the folder, which the model's own images go through at 64, 48 and 32 px."""
    x = images(9)
    choice = spread_choices(tiny, x)
    export_model(tiny, tmp_path / 'tiny', timm_drnet.cost_table(tiny), 'torch')
    return tmp_path / 'tiny', x, choice


@torch.no_grad()
def test_choices_and_logits_are_the_model_s(tiny, exported):
    folder, x, choice = exported
    loaded = timm_drnet.ExportedDRNet(folder)
    assert loaded.resolutions == (64, 48, 32)
    assert loaded.labels == tuple('01234')
    assert torch.equal(loaded.predict_resolution(x), choice)
    torch.testing.assert_close(loaded(x), tiny(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded(x[4:5]), tiny(x[4:5]), rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.forward_at(x, 1), tiny.forward_at(x, 1), rtol=0, atol=1e-5)
    other = (choice + 1) % 3
    torch.testing.assert_close(loaded.forward_at(x, other), tiny.forward_at(x, other), rtol=0, atol=1e-5)
    large = torch.nn.functional.interpolate(x, scale_factor=2)
    torch.testing.assert_close(loaded.forward_at(large, choice), tiny.forward_at(large, choice), rtol=0, atol=1e-5)
    refuses_bad_input(loaded, x)
    refuses_scores_that_are_not_finite(loaded, x)
    refuses_harmed_folders(folder)
    refuses_lies(folder)


def refuses_bad_input(loaded, x):
    for bad in (x[0], x[:0], x[:, :, 1:]):
        for call in (loaded, loaded.predict_resolution, lambda x: loaded.forward_at(x, 0)):
            with pytest.raises(ValueError, match='Invalid input'):
                call(bad)
    for choice in (3, -1, torch.arange(9), torch.zeros(8, dtype=torch.int64), torch.zeros(9)):
        with pytest.raises(ValueError, match='Invalid choice'):
            loaded.forward_at(x, choice)


def refuses_scores_that_are_not_finite(loaded, x):
    """As the model does."""
    damaged = x.clone()
    damaged[2] = float('nan')
    chosen = loaded.predict_resolution(x)
    chosen[2] = -1
    assert torch.equal(loaded.predict_resolution(damaged), chosen)
    with pytest.raises(ValueError, match='Invalid choice -1: .* scores are not finite'):
        loaded(damaged)


def refuses_harmed_folders(folder):
    with pytest.raises(InvalidExportError, match=r'--format torch; load it with timm_drnet\.ExportedDRNet'):
        timm_drnet.OnnxDRNet(folder)
    program = folder / 'branch_48.pt2'
    content = program.read_bytes()
    program.write_bytes(content[:-1] + b'?')
    with pytest.raises(InvalidExportError, match=r'branch_48\.pt2: not the file'):
        timm_drnet.ExportedDRNet(folder)
    program.write_bytes(content)
    path = folder / 'manifest.json'
    manifest = {**json.loads(path.read_text()), 'runtime': 'onnx'}
    path.write_text(json.dumps({**manifest, 'sha256': manifest_digest(manifest)}))
    with pytest.raises(InvalidExportError, match=r'--format onnx; load it with timm_drnet\.OnnxDRNet'):
        timm_drnet.ExportedDRNet(folder)
    path.write_text(json.dumps({**manifest, 'runtime': 'torch'}))


def refuses_lies(folder):
    """One of each kind; the other runner's tests have them all, and both read with the same function."""
    program = folder / 'branch_48.pt2'
    path = folder / 'manifest.json'
    right = json.loads(path.read_text())
    garbage = {'name': program.name, 'size': 7, 'sha256': hashlib.sha256(b'garbage').hexdigest()}
    for entry, told in (
            ({**garbage, 'name': '../secret'}, r'its files\.branches is not'),
            ({**garbage, 'name': None}, r'its files\.branches is not'),
            (garbage, r'branch_48\.pt2: PyTorch \S+ cannot load it')):
        program.write_bytes(b'garbage')
        first, _, last = right['files']['branches']
        lie = {**right, 'files': {**right['files'], 'branches': [first, entry, last]}}
        path.write_text(json.dumps({**lie, 'sha256': manifest_digest(lie)}))
        with pytest.raises(InvalidExportError, match=told):
            timm_drnet.ExportedDRNet(folder)


@torch.no_grad()
def test_cascade_climbs(make_cascade, images, tmp_path):
    model, x = make_cascade(), images(30)
    export_model(model, tmp_path / 'out', timm_drnet.cost_table(model), 'torch')
    loaded = timm_drnet.ExportedDRNet(tmp_path / 'out')
    logits, choice = model.classify(x)
    assert choice.bincount().tolist() == [10, 10, 10]
    assert torch.equal(loaded.predict_resolution(x), choice)
    torch.testing.assert_close(loaded(x), logits, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(loaded.forward_at(x, 2), model.forward_at(x, 2), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_pretrain_stage_runs_at_the_largest(make_tiny, shake, images, tmp_path):
    model = shake(make_tiny(stage='pretrain', resolutions=(64, 32))).eval()
    export_model(model, tmp_path / 'out', timm_drnet.cost_table(model), 'torch')
    loaded = timm_drnet.ExportedDRNet(tmp_path / 'out')
    x = images(3)
    assert loaded.predict_resolution(x).tolist() == [0, 0, 0]
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.forward_at(x, 1), model.forward_at(x, 1), rtol=0, atol=1e-5)
    assert (loaded(x) - loaded.forward_at(x, 1)).abs().max() > 1e-3
