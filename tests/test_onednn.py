"""Fused convolutions give what their three operations give."""

import copy

import pytest
import torch
from torch import nn

from timm_drnet.folding import fold_norms
from timm_drnet.onednn import _ACTIVATIONS, FusedConv, fuse_convs


def run_plainly(conv, act, x, summand=None):
    y = conv(x)
    y = y if summand is None else y + summand
    return y if act is None else act(y)


@pytest.mark.parametrize('geometry', [
    {'kernel_size': 1}, {'kernel_size': 3, 'padding': 1, 'stride': 2}, {'kernel_size': 3, 'groups': 8},
    {'kernel_size': 3, 'dilation': 2, 'bias': False}, {'kernel_size': (1, 3), 'padding': (0, 1)}],
    ids=['pointwise', 'strided', 'depthwise', 'dilated', 'oblong'])
@pytest.mark.parametrize('kind', [None, *_ACTIVATIONS], ids=lambda kind: kind.__name__ if kind else 'none')
@torch.no_grad()
def test_fused_convolution(images, kind, geometry):
    conv = nn.Conv2d(8, 8, **geometry)
    act = kind and kind()
    fused = FusedConv(conv, act)
    for n in (1, 3, 17):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = (3 * images(n, 12, channels=8)).contiguous(memory_format=layout)
            torch.testing.assert_close(fused(x), run_plainly(conv, act, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('act', [None, nn.ReLU()])
@torch.no_grad()
def test_summand(images, act, inplace):
    conv = nn.Conv2d(8, 8, 3, padding=1)
    x, summand = images(2, 12, channels=8), images(2, 12, channels=8, seed=5).contiguous(
        memory_format=torch.channels_last)
    expected, before = run_plainly(conv, act, x, summand), summand.clone()
    torch.testing.assert_close(FusedConv(conv, act)(x, summand, inplace), expected, rtol=1e-5, atol=1e-5)
    assert inplace or torch.equal(summand, before)


@torch.no_grad()
def test_weights_are_put_back_for_everything_else(images):
    conv = nn.Conv2d(8, 8, 3)
    x = images(2, 12, channels=8)
    fused = FusedConv(conv, None)
    expected = fused(x)
    if fused.runs_fused:
        assert fused.weight.is_mkldnn
    assert torch.equal(fused.state_dict()['weight'], conv.weight)
    assert torch.equal(copy.deepcopy(fused)(x), expected)
    torch.testing.assert_close(copy.deepcopy(fused).double()(x.double()).float(), expected, rtol=1e-5, atol=1e-5)
    fused.load_state_dict({'weight': torch.zeros_like(conv.weight), 'bias': torch.ones(8)})
    assert torch.equal(fused(x), torch.ones_like(expected))


class Residual(nn.Module):
    """A residual block whose input and branch are seen once more where asked for."""

    def __init__(self, after=lambda x, y: y, swap=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.after, self.swap = after, swap

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        y = x + y if self.swap else y + x
        return self.after(x, self.act(y))


@pytest.mark.parametrize('swap', [False, True])
@pytest.mark.parametrize('after', [lambda x, y: y, lambda x, y: y + x, lambda x, y: y * x.mean()],
                         ids=['nothing', 'sum', 'product'])
@torch.no_grad()
def test_graph_gives_the_same(images, after, swap):
    net = Residual(after, swap).eval()
    traced = fold_norms(net)
    x = images(3, 16)
    fuse_convs(traced, x, {})
    convs = [m for m in traced.modules() if isinstance(m, FusedConv)]
    assert len(convs) == 2
    assert any(conv.act is not None for conv in convs)
    assert not any(isinstance(m, nn.ReLU) for name, m in traced.named_children())
    before = x.clone()
    for _ in range(2):
        torch.testing.assert_close(traced(x), net(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(x, before)


@torch.no_grad()
def test_sum_of_different_shapes_is_left_alone(images):
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            y = self.conv(x)
            return y + x.mean()

    net = Broadcast().eval()
    traced = fold_norms(net)
    x = images(2, 16)
    fuse_convs(traced, x, {})
    torch.testing.assert_close(traced(x), net(x), rtol=1e-5, atol=1e-5)
