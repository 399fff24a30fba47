"""Norms folded into convolutions, against torch's own folding and the model as it was."""

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, DropBlock2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from timm_drnet.folding import ChannelAffine, fold_norms


class Net(nn.Module):
    """A net with a forward of one's own."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def count(module, kind):
    return sum(isinstance(m, kind) for m in module.modules())


@pytest.fixture
def folded(shake, images):
    """Function that folds a net with random norms, and checks that this changes nothing."""

    def folded(net, into_convs=True, size=16):
        net = shake(net).eval()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        x = images(2, size)
        result = fold_norms(net, into_convs)
        with torch.no_grad():
            torch.testing.assert_close(result(x.clone()), net(x), rtol=1e-5, atol=1e-5)
        assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
        assert count(result, _BatchNorm) == 0
        assert not any(p.requires_grad for p in result.parameters())
        return result

    return folded


@pytest.mark.parametrize('conv', [
    nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(3, 6, 3, groups=3),
    nn.Conv2d(3, 8, 3, dilation=2, padding_mode='reflect', padding=1), Conv2dSame(3, 8, 3, stride=2)],
    ids=['plain', 'bias', 'depthwise', 'reflect', 'same'])
def test_folding_is_torch_s(folded, conv):
    net = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
    result = folded(net)
    [ours] = [m for m in result.modules() if isinstance(m, nn.Conv2d)]
    theirs = fuse_conv_bn_eval(net[0], net[1])
    assert type(ours) is type(conv)
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-5, atol=1e-6)
    assert count(result, ChannelAffine) == 0


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(8, eps=0.1), nn.SyncBatchNorm(8)], ids=['eps', 'sync'])
def test_kinds_of_norms(folded, norm):
    assert count(folded(nn.Sequential(nn.Conv2d(3, 8, 3), norm)), ChannelAffine) == 0


def test_norm_without_affine_parameters(images):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)).eval()
    net[1].running_mean.uniform_(-1, 1)
    net[1].running_var.uniform_(0.5, 2)
    x = images(2, 16)
    for into_convs in (True, False):
        torch.testing.assert_close(fold_norms(net, into_convs)(x), net(x), rtol=1e-5, atol=1e-5)


def test_norm_with_activation_keeps_it(folded):
    result = folded(nn.Sequential(nn.Conv2d(3, 8, 3), BatchNormAct2d(8, act_layer=nn.SiLU)))
    assert count(result, nn.SiLU) == 1
    assert count(result, ChannelAffine) == 0


def test_idle_layers_do_not_stand_between(folded):
    drop = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout2d(0.5), nn.Identity(), DropBlock2d(0.1), nn.BatchNorm2d(8))
    assert count(folded(drop), ChannelAffine) == 0


KEPT = {
    'before the convolution': Net(lambda m, x: m.conv(m.norm(x)), norm=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 8, 3)),
    'after an activation': nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
    'result also used elsewhere': Net(
        lambda m, x: (lambda y: m.norm(y) + y)(m.conv(x)), conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8)),
    'after a sum': Net(
        lambda m, x: m.norm(m.one(x) + m.two(x)), one=nn.Conv2d(3, 8, 3), two=nn.Conv2d(3, 8, 3),
        norm=nn.BatchNorm2d(8)),
    'after a transposed convolution': nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8)),
}


@pytest.mark.parametrize('name', KEPT)
def test_norm_that_cannot_be_folded_stays(folded, name):
    assert count(folded(copy.deepcopy(KEPT[name])), ChannelAffine) == 1


def test_convolution_that_is_used_twice(folded):
    result = folded(Net(
        lambda m, x: m.norm(m.conv(x)) + m.conv(x).relu(), conv=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8)))
    assert count(result, nn.Conv2d) == 2  # one with the norm, one without


def test_norm_that_is_used_twice(folded):
    result = folded(Net(
        lambda m, x: m.norm(m.one(x)) + m.norm(m.two(x)), one=nn.Conv2d(3, 8, 3), two=nn.Conv2d(3, 8, 3),
        norm=nn.BatchNorm2d(8)))
    assert count(result, ChannelAffine) == 0


def test_convolutions_can_stay_as_they_are(folded):
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    result = folded(net, into_convs=False)
    assert count(result, ChannelAffine) == 1
    [conv] = [m for m in result.modules() if isinstance(m, nn.Conv2d)]
    assert torch.equal(conv.weight, net[0].weight)


def test_convolution_with_a_hook_is_left_alone(folded):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    net[0].register_forward_hook(lambda module, args, y: y * 2)
    assert count(folded(net), ChannelAffine) == 1


def test_norm_without_statistics_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(ValueError, match="norm '1' has no running statistics"):
        fold_norms(net)


def test_forward_that_cannot_be_traced_is_refused():
    net = Net(lambda m, x: m.conv(x) if x.sum() > 0 else x, conv=nn.Conv2d(3, 8, 3))
    with pytest.raises(ValueError, match='forward of Net cannot be traced by torch.fx'):
        fold_norms(net)
