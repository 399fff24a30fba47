"""Weights in oneDNN's order are made once for each order that images ask for, and give the same results."""

import copy
import pickle

import pytest
import torch
from torch import nn

from timm_drnet.deploy.onednn import FusedConv

SHAPES = [(1, 14, 14), (3, 14, 14), (8, 14, 14), (8, 7, 7), (32, 7, 7), (4, 1, 1)]


@pytest.fixture
def fused():
    """A convolution with its activation."""
    torch.manual_seed(0)
    conv = FusedConv(nn.Conv2d(64, 128, 3, padding=1).to(memory_format=torch.channels_last), nn.ReLU())
    if not conv.runs_fused:
        pytest.skip('oneDNN does not convolve here')
    return conv


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_any_shape_gives_the_same(fused, layout):
    for n, *size in SHAPES:
        x = torch.randn(n, 64, *size).contiguous(memory_format=layout)
        expected = nn.functional.conv2d(x, fused.weight, fused.bias, padding=1).relu()
        for _ in range(2):
            torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_weights_are_put_in_order_once(fused):
    def asked():
        with torch.profiler.profile() as profile:
            for n, *size in SHAPES:
                fused(torch.zeros(n, 64, *size))
        return sum(e.count for e in profile.key_averages() if e.key == 'mkldnn::_reorder_convolution_weight')

    assert asked() == len(SHAPES) - 1  # for images of one pixel the layout is not known
    assert asked() == 0
    own = fused.weight.numel() * fused.weight.element_size()
    assert own <= fused.packed.memory() < 3 * own  # and not once for each shape


@torch.no_grad()
def test_changed_weights_are_put_in_order_anew(fused):
    x = torch.randn(2, 64, 7, 7)
    fused(x)
    fused.load_state_dict({name: torch.zeros_like(value) for name, value in fused.state_dict().items()})
    assert fused(x).abs().max() == 0
    fused.weight.data.normal_()
    assert fused.bfloat16()(x.bfloat16()).abs().max() > 0


@torch.no_grad()
def test_copies_have_their_own(fused):
    x = torch.randn(2, 64, 7, 7)
    expected = fused(x)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert other.packed.memory() == 0
        torch.testing.assert_close(other(x), expected)
    assert 'packed' not in ' '.join(fused.state_dict())
