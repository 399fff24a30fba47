"""Cost tables against the paper's numbers, torch's own counter, and FLOPs written out by hand."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_drnet
from timm_drnet.cost.flops import count_flops


@pytest.fixture
def counted(monkeypatch):
    """List of the sizes at which modules have been counted."""
    sizes = []

    def count(module, in_chans, size):
        sizes.append(size)
        return count_flops(module, in_chans, size)

    monkeypatch.setattr('timm_drnet.cost.flops.count_flops', count)
    return sizes


def torch_flops(module, channels, size):
    """Multiply-accumulates by torch's counter, which counts two operations for each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(torch.zeros(1, channels, size, size, device=next(module.parameters()).device))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(('name', 'backbone', 'backbone_parameters', 'gflops', 'predictor_parameters', 'predictor'), [
    ('drnet_resnet50', 'resnet50', 25_557_032, ('4.0892', '2.5030', '1.0779'), 4_907_331, '290.2'),
    ('drnet_resnet101', 'resnet101', 44_549_160, ('7.8014', '4.7948', '2.0060'), 4_907_331, '290.2'),
    ('drnet_mobilenetv2', 'mobilenetv2_100', 3_504_872, ('0.3008', '0.2600', '0.1889'), None, None),
])
def test_numbers_of_the_paper(name, backbone, backbone_parameters, gflops, predictor_parameters, predictor):
    model = timm.create_model(name)
    rows = timm_drnet.cost_table(model)
    assert tuple(f'{row.backbone_flops / 1e9:.4f}' for row in rows) == gflops
    assert [row.resolution for row in rows] == list(model.resolutions)
    parameters = {key: p.numel() for key, p in model.named_parameters()}
    extra = sum(n for key, n in parameters.items() if '.norms.1.' in key or '.norms.2.' in key)
    of_predictor = sum(n for key, n in parameters.items() if key.startswith('predictor.'))
    assert sum(parameters.values()) - of_predictor - extra == backbone_parameters
    assert len({row.predictor_flops for row in rows}) == 1
    if predictor is None:
        assert 0.25e6 < of_predictor < 0.35e6
        assert rows[0].predictor_flops <= 10e6
    else:
        assert of_predictor == predictor_parameters
        assert f'{rows[0].predictor_flops / 1e6:.1f}' == predictor
    plain = timm.create_model(backbone, device='meta')
    assert [row.backbone_flops for row in rows] == [torch_flops(plain, 3, r) for r in model.resolutions]


@pytest.mark.parametrize('channels', [1, 3])
def test_count_by_hand(channels):
    net = nn.Sequential(
        nn.Conv2d(channels, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 16, 1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    side = 10  # of 20 px
    expected = side * side * (8 * channels * 9 + 8 * 9 + 16 * 4) + 16 * 5
    assert count_flops(net, channels, 20) == expected


def test_rows_add_up(tiny):
    rows = timm_drnet.cost_table(tiny)
    assert [row.resolution for row in rows] == [64, 48, 32]
    assert rows[0].fraction == 1.0
    for row in rows:
        assert row.total_flops == row.backbone_flops + row.predictor_flops
        assert row.fraction == row.backbone_flops / rows[0].backbone_flops


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_efficientnet', 'test_byobnet'])
def test_counts_agree_with_torch(make_tiny, backbone):
    model = make_tiny(backbone, in_chans=2)
    rows = timm_drnet.cost_table(model)
    assert {row.predictor_flops for row in rows} == {torch_flops(model.predictor, 2, 32)}
    for j, row in enumerate(rows):
        assert row.backbone_flops == torch_flops(model.branch(j), 2, row.resolution)


def test_table_is_counted_when_needed_and_kept(make_tiny, counted):
    model = make_tiny()
    assert counted == []
    rows = timm_drnet.cost_table(model)
    assert counted == [32, 64, 48, 32]  # the predictor first
    model(torch.randn(2, 3, 64, 64))
    model.eval()
    assert timm_drnet.cost_table(model) is rows
    assert timm_drnet.cost_table(copy.deepcopy(model)) == rows
    assert len(counted) == 4


def test_table_follows_another_classifier(make_tiny, counted):
    model = make_tiny()
    before = timm_drnet.cost_table(model)
    model.reset_classifier(9)
    after = timm_drnet.cost_table(model)
    assert len(counted) == 8
    for row, old in zip(after, before, strict=True):
        assert row.backbone_flops - old.backbone_flops == model.num_features * (9 - 5)


@pytest.mark.parametrize('training', [True, False])
def test_counting_leaves_no_trace(make_tiny, shake, training):
    model = shake(make_tiny()).train(training)
    model.backbone.layer1.eval()  # a mode that differs from the model's
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    timm_drnet.cost_table(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize('setting', ['autocast', 'half', 'checkpointing', 'channels last', 'no grad'])
def test_table_is_the_same_in_every_setting(make_tiny, setting):
    expected = timm_drnet.cost_table(make_tiny())
    model = make_tiny()
    if setting == 'half':
        model.to(torch.bfloat16)
    if setting == 'checkpointing':
        model.set_grad_checkpointing()
    if setting == 'channels last':
        model.to(memory_format=torch.channels_last)
    autocast = torch.autocast('cpu', dtype=torch.bfloat16, enabled=setting == 'autocast')
    with autocast, torch.set_grad_enabled(setting != 'no grad'):
        assert timm_drnet.cost_table(model) == expected
