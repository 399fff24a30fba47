"""Fused convolutions give what their three operations give."""

import copy

import pytest
import torch
from torch import nn

from timm_drnet.deploy.folding import fold_norms
from timm_drnet.deploy.onednn import _ACTIVATIONS, FusedConv, fuse_convs


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
def test_copies_and_other_types_give_the_same(images):
    conv, x = nn.Conv2d(8, 8, 3), images(2, 12, channels=8)
    fused = FusedConv(conv, nn.ReLU())
    assert fused.weight is conv.weight  # no memory of its own
    expected = fused(x)
    assert torch.equal(copy.deepcopy(fused)(x), expected)
    torch.testing.assert_close(copy.deepcopy(fused).double()(x.double()).float(), expected, rtol=1e-5, atol=1e-5)


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
    fuse_convs(traced, x)
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
    fuse_convs(traced, x)
    torch.testing.assert_close(traced(x), net(x), rtol=1e-5, atol=1e-5)


def fused_graph(net, x):
    """A net with its convolutions fused, and what its graph calls with how many arguments."""
    traced = fold_norms(net.eval())
    fuse_convs(traced, x)
    calls = [
        (type(traced.get_submodule(node.target)).__name__, len(node.args))
        for node in traced.graph.nodes if node.op == 'call_module']
    return traced, calls


class Net(nn.Module):
    """Two convolutions, and a forward made of them."""

    def __init__(self, forward):
        super().__init__()
        self.one, self.two, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def summand_that_changes(net, x):
    y = net.one(x)
    z = net.two(x)
    y.mul_(2)
    return z + y


def summand_read_later(net, x):
    y = net.one(x)
    z = net.two(x) + y
    return net.two(y) + z


def part_seen_later(net, x):
    y = net.one(x)
    part = y[:1]
    return (net.two(x) + y) * part


def result_seen_twice(net, x):
    y = net.two(x)
    return net.act(y) + y.exp()


def sum_seen_twice(net, x):
    y = net.two(x) + x
    return net.act(y) + y.exp()


@pytest.mark.parametrize(('forward', 'calls'), [
    (lambda net, x: net.two(x) + x, [('FusedConv', 2)]),  # the input of the net must not change
    (lambda net, x: net.two(net.one(x)) + x, [('FusedConv', 1), ('FusedConv', 2)]),
    (summand_that_changes, [('FusedConv', 1)] * 2),
    (summand_read_later, [('FusedConv', 1), ('FusedConv', 2), ('FusedConv', 3)]),
    (result_seen_twice, [('FusedConv', 1), ('ReLU', 1)]),
    (sum_seen_twice, [('FusedConv', 2), ('ReLU', 1)]),
    (lambda net, x: (lambda y: y + y)(net.two(x)), [('FusedConv', 1)]),
    (lambda net, x: net.two(x) + 1, [('FusedConv', 1)]),
    (lambda net, x: (lambda y: (y + x) * y)(net.two(x)), [('FusedConv', 1)]),
    (lambda net, x: (lambda y: net.two(x) + y)(x.mean((2, 3), keepdim=True)), [('FusedConv', 1)]),
    (part_seen_later, [('FusedConv', 1), ('FusedConv', 2)]),
    (lambda net, x: torch.add(net.two(x), x, alpha=2), [('FusedConv', 1)]),
    (lambda net, x: net.act(net.two(x) + x), [('FusedConv', 2)]),
    (lambda net, x: net.two(net.one(x)) + net.one(x), [('FusedConv', 1), ('FusedConv', 1), ('FusedConv', 3)]),
    (lambda net, x: net.one(x).mul_(2) + net.two(x), [('FusedConv', 1), ('FusedConv', 2)]),
    (lambda net, x: (lambda y: net.two(y) + y)(net.one(x)), [('FusedConv', 1), ('FusedConv', 2)]),
    (lambda net, x: (lambda y: net.act(net.two(x) + y) * y[:1])(net.one(x)), [('FusedConv', 1), ('FusedConv', 2)]),
])
@torch.no_grad()
def test_what_is_fused(images, forward, calls):
    net, x = Net(forward), images(3, 16)
    given, expected = x.clone(), net(x)
    traced, found = fused_graph(net, x)
    assert found == calls
    for _ in range(2):
        torch.testing.assert_close(traced(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(x, given)


@torch.no_grad()
def test_activation_behind_a_sum_is_fused_only_if_it_is_relu(images):
    net, x = Net(lambda net, x: net.act(net.two(x) + x)), images(3, 16)
    net.act = nn.SiLU()
    expected = net(x)
    traced, calls = fused_graph(net, x)
    assert calls == [('FusedConv', 2), ('SiLU', 1)]
    torch.testing.assert_close(traced(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('padding', ['same', 'valid'])
@torch.no_grad()
def test_other_paddings_are_left_alone(images, padding):
    x = images(2, 16)
    for conv in (nn.Conv2d(3, 4, 3, padding=padding), nn.Conv2d(3, 4, 3, padding=1, padding_mode='circular')):
        traced, calls = fused_graph(nn.Sequential(conv, nn.ReLU()), x)
        assert calls == [('Conv2d', 1), ('ReLU', 1)]
        torch.testing.assert_close(traced(x), conv(x).relu())


@torch.no_grad()
def test_activations_keep_their_settings(images):
    x = 3 * images(2, 16)
    for act in (nn.LeakyReLU(0.3), nn.Hardtanh(-0.5, 0.2), nn.GELU(approximate='tanh')):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), act)
        traced, calls = fused_graph(net, x)
        assert calls == [('FusedConv', 1)]
        torch.testing.assert_close(traced(x), net(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_autocast_changes_nothing(images):
    net, x = Net(lambda net, x: net.act(net.two(net.one(x)) + x)), images(2, 16)
    traced, _ = fused_graph(net, x)
    expected = traced(x)
    with torch.autocast('cpu', torch.bfloat16):
        result = traced(x.bfloat16())
    torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)
