"""Exports in other precisions than float32: what becomes smaller, what stays right, and what is told of it."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import timm_drnet
from timm_drnet.deploy import export, precision
from timm_drnet.deploy.arrays import confidence
from timm_drnet.deploy.export import check_target, export_model
from timm_drnet.deploy.onnx_runner import OnnxDRNet
from timm_drnet.deploy.quantization import quantize
from timm_drnet.deploy.runtimes import RUNTIMES, load


@torch.no_grad()
@pytest.mark.parametrize(('name', 'dtype'), [('bf16', torch.bfloat16), ('fp16', torch.float16)])
def test_half_precision(make_tiny, shake, images, tmp_path, name, dtype):
    model = shake(make_tiny(stage='pretrain', resolutions=(64,))).eval()
    folder = tmp_path / 'out'
    manifest = export_model(model, folder, timm_drnet.cost_table(model), precision=name)
    assert manifest['precision'] == name
    size = sum(p.numel() for p in model.branch(0).parameters())
    assert manifest['files']['branches'][0]['size'] == pytest.approx(2 * size, rel=0.2)
    stored = {t.data_type for t in onnx.load(folder / 'branch_64.onnx').graph.initializer if np.prod(t.dims) > 100}
    assert stored == {{'bf16': onnx.TensorProto.BFLOAT16, 'fp16': onnx.TensorProto.FLOAT16}[name]}
    x = images(8)
    expected = model.forward_at(x, 0)
    for runtime in RUNTIMES:
        error = np.abs(OnnxDRNet(folder, runtime=runtime).forward_at(x.numpy(), 0) - expected.numpy()).max()
        assert 0 < error < 4 * torch.finfo(dtype).eps * expected.abs().max()
    assert {'bf16': 'bfloat16', 'fp16': 'float16'}[name] in (folder / 'README.md').read_text()


@torch.no_grad()
def test_int8(make_cascade, images, tmp_path):
    x = images(30)  # those that the cascade's thresholds are made for
    model, folder = make_cascade(), tmp_path / 'out'
    manifest = export_model(
        model, folder, timm_drnet.cost_table(model), precision='int8', calibrate=torch.cat([x, images(30, seed=2)]))
    assert manifest['quantization'] == {'images': 45, 'held_out': 15}
    for entry in manifest['files']['branches']:
        graph = onnx.load(folder / entry['name']).graph
        of = {tensor.name: tensor for tensor in graph.initializer}
        (conv, *_) = (node for node in graph.node if node.op_type == 'Conv')
        (widen,) = (node for node in graph.node if conv.input[1] in node.output)
        weights, scale = of[widen.input[0]], of[widen.input[1]]
        assert (widen.op_type, weights.data_type) == ('DequantizeLinear', onnx.TensorProto.INT8)
        assert list(scale.dims) == [weights.dims[0]]  # per channel
        assert entry['agreement'] >= 0.8
        assert isinstance(entry['float_operators'], list)
    expected, choice = model.classify(x)
    for runtime in RUNTIMES:
        runner = OnnxDRNet(folder, runtime=runtime)
        logits = runner(x.numpy())
        assert (runner.predict_resolution(x.numpy()) == choice.numpy()).mean() >= 0.8
        assert (logits.argmax(axis=1) == expected.numpy().argmax(axis=1)).mean() >= 0.8
        assert np.abs(confidence(logits) - confidence(expected.numpy())).mean() < 0.1
    card = (folder / 'README.md').read_text()
    assert 'with ranges measured on 45 images' in card
    assert f'{manifest["files"]["branches"][0]["agreement"]:.1%} of 15 held out' in card
    assert json.loads((folder / 'manifest.json').read_text()) == manifest


class Uneven(nn.Sequential):
    """A channel is 300 times as large as the others between two convolutions: one range for all loses the others."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(16, 10))
        with torch.no_grad():
            self[0].weight[0] *= 300
            self[2].weight[:, 0] /= 300
            self[6].weight *= 30


def test_operator_that_loses_accuracy_stays_in_float(images, tmp_path):
    path = tmp_path / 'uneven.onnx'
    export._write_onnx(Uneven().eval(), images(2, 16), path, None)
    x, held_out = images(32, 16).numpy(), images(64, 16, seed=3).numpy()
    expected = load(path.read_bytes(), 'onnxruntime')(held_out).argmax(axis=1)

    def agreement(result):
        return (load(result.content, 'onnxruntime')(held_out).argmax(axis=1) == expected).mean()

    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    blind = quantize(path.read_bytes(), x, held_out[:0], tmp_path / 'a')
    assert (blind.float_operators, blind.agreement) == ((), None)
    mended = quantize(path.read_bytes(), x, held_out, tmp_path / 'b')
    assert mended.float_operators
    assert {*mended.float_operators} <= {'0/Conv', '2/Conv', '6/Gemm'}  # its modules
    assert agreement(mended) == mended.agreement
    assert agreement(mended) > agreement(blind)


def test_int8_that_answers_otherwise_is_refused(make_tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, '_LEAST_AGREEMENT', 1.1)
    model = make_tiny(stage='pretrain')
    with pytest.raises(ValueError, match=r'int8: branch_64\.onnx answers otherwise .* \d+% of the images'):
        export_model(model, tmp_path / 'out', (), precision='int8', calibrate=images(32))
    assert not list(tmp_path.iterdir())


def test_bad_arguments(make_tiny, images, tmp_path):
    with pytest.raises(ValueError, match="Invalid precision 'int4': use one of 'float32', 'bf16', 'fp16', 'int8'"):
        check_target(tmp_path / 'out', precision='int4')
    with pytest.raises(ValueError, match="Invalid precision 'bf16': use format onnx"):
        check_target(tmp_path / 'out', 'torch', precision='bf16')
    for arguments in ({'precision': 'int8'}, {'precision': 'bf16', 'calibrate': images(2)}):
        with pytest.raises(ValueError, match='Invalid calibrate: precision int8 needs images'):
            export_model(make_tiny(), tmp_path / 'out', (), **arguments)
    with pytest.raises(ValueError, match='Invalid precision int8: .* use bf16 without a classifier'):
        export_model(make_tiny(num_classes=0), tmp_path / 'out', (), precision='int8', calibrate=images(2))
