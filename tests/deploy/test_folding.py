"""Folding norms into convolutions: on hand-made nets where torch's own folding or plain evaluation gives the answer."""

import copy
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, StdConv2d, SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from timm_drnet.core.norm import branch_view, convert_norms
from timm_drnet.deploy.folding import ChannelAffine, fold_norms


class Net(nn.Module):
    """Modules by name, and a forward made of them."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.run = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x, mask=None):
        assert mask is None
        return self.run(self, x)


class Double(nn.Module):
    """A stand-in for a drop layer that shows whether it runs."""

    def forward(self, x):
        return 2 * x


def called(folded):
    """Types of the modules that a graph calls, in that order."""
    return [type(folded.get_submodule(node.target)) for node in folded.graph.nodes if node.op == 'call_module']


def count(module, *types):
    return sum(isinstance(m, types) for m in module.modules())


@pytest.fixture
def fold(shake, images):
    """Function that folds a net, checks that this changes neither results nor the net, and returns the copy."""

    def fold(net, channels=3, size=12, **kwargs):
        net = shake(net).eval()
        x = images(2, size, channels)
        expected = net(x)
        assert expected.std() > 1e-3
        state = {key: value.clone() for key, value in net.state_dict().items()}
        folded = fold_norms(net, **kwargs)
        given = x.clone()
        torch.testing.assert_close(folded(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(x, given)
        assert net.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        assert torch.equal(net(x), expected)
        return folded

    return fold


@pytest.mark.parametrize('conv', [
    nn.Conv2d(3, 8, 3),
    nn.Conv2d(3, 8, 3, bias=False),
    nn.Conv2d(4, 8, 3, groups=2, bias=False),
    nn.Conv2d(4, 4, 3, groups=4, padding=1),
    nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, padding_mode='reflect'),
    nn.Conv2d(3, 8, 3, padding='same'),
    Conv2dSame(3, 8, 3, stride=2),
])
@pytest.mark.parametrize('norm', [nn.BatchNorm2d, partial(nn.BatchNorm2d, affine=False, eps=0.1), nn.SyncBatchNorm])
def test_folded_convolution_is_torch_s_own(fold, conv, norm):
    class Pair(nn.Sequential):
        pass

    net = Pair(copy.deepcopy(conv), norm(conv.out_channels))
    if not net[1].affine:
        net[1].register_parameter('weight', nn.Parameter(torch.ones(conv.out_channels)))  # for the fixture to shake
        net[1].register_parameter('bias', nn.Parameter(torch.zeros(conv.out_channels)))
    folded = fold(net, conv.in_channels)
    assert count(folded, _BatchNorm, ChannelAffine) == 0
    (result,) = (m for m in folded.modules() if isinstance(m, nn.Conv2d))
    expected = fuse_conv_bn_eval(net[0], net[1])
    assert type(result) is type(conv)
    torch.testing.assert_close(result.weight, expected.weight)
    torch.testing.assert_close(result.bias, expected.bias)
    assert not any(p.requires_grad for p in folded.parameters())


def test_norm_without_weights_is_folded(images):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)).eval()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(1, 2)
    folded = fold_norms(net)
    assert count(folded, _BatchNorm, ChannelAffine) == 0
    torch.testing.assert_close(folded(images(2)), net(images(2)))


@pytest.mark.parametrize('norm', [BatchNormAct2d, SyncBatchNormAct])
def test_activation_and_drop_layer_of_a_norm_stay(fold, norm):
    norm = norm(4)
    norm.drop, norm.act = Double(), nn.SiLU()
    folded = fold(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
    assert called(folded) == [nn.Conv2d, Double, nn.SiLU]
    norm.drop = nn.Dropout()
    folded = fold(nn.Sequential(nn.Conv2d(3, 4, 3), norm))
    assert called(folded) == [nn.Conv2d, nn.SiLU]


@pytest.mark.parametrize('between', [nn.Identity(), nn.Dropout(0.5), timm.layers.DropPath(0.5)])
def test_what_does_nothing_in_evaluation_is_no_obstacle(fold, between):
    folded = fold(nn.Sequential(nn.Conv2d(3, 4, 3), between, nn.BatchNorm2d(4)))
    assert called(folded) == [nn.Conv2d]


def test_norm_that_follows_no_convolution_stays_and_leaves_its_input(fold):
    net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), BatchNormAct2d(4))
    folded = fold(net)
    assert called(folded) == [ChannelAffine, nn.ReLU, nn.Conv2d, nn.ReLU, ChannelAffine, nn.ReLU]
    assert not any(m.inplace for m in folded.children() if isinstance(m, ChannelAffine))


def test_convolution_whose_result_is_used_elsewhere_is_not_folded(fold):
    def forward(net, x):
        y = net.conv(x)
        return net.norm(y) + y

    folded = fold(Net(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)))
    (affine,) = (m for m in folded.children() if isinstance(m, ChannelAffine))
    assert not affine.inplace


def test_convolution_used_twice_is_folded_once_for_each_norm(fold):
    def forward(net, x):
        return net.one(net.conv(x)) + net.other(net.conv(x.relu())) + net.conv(x.abs())

    folded = fold(Net(forward, conv=nn.Conv2d(3, 4, 3), one=nn.BatchNorm2d(4), other=nn.BatchNorm2d(4)))
    assert count(folded, _BatchNorm, ChannelAffine) == 0
    assert count(folded, nn.Conv2d) == 3


def test_norm_in_two_places_is_folded_where_it_can_be(fold):
    def forward(net, x):
        return net.norm(net.conv(x)) + net.norm(net.pool(x)) + net.norm(net.other(x))

    folded = fold(Net(
        forward, conv=nn.Conv2d(3, 3, 3), other=nn.Conv2d(3, 3, 3), pool=nn.AvgPool2d(3, 1), norm=nn.BatchNorm2d(3)))
    assert count(folded, _BatchNorm) == 0
    assert count(folded, ChannelAffine) == 1


def test_pair_that_runs_twice_is_folded_twice(fold):
    def forward(net, x):
        return net.pair(net.pair(x).relu())

    folded = fold(Net(forward, pair=nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))))
    assert called(folded) == [nn.Conv2d, nn.Conv2d]


def test_convolution_that_changes_its_weight_is_not_folded(fold):
    folded = fold(nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert called(folded) == [StdConv2d, ChannelAffine]


def test_module_under_two_names_leaves_nothing_behind(fold):
    pair = nn.Sequential(nn.Conv2d(3, 3, 3), BatchNormAct2d(3))
    folded = fold(nn.Sequential(pair, nn.Sequential(*pair)))
    assert called(folded) == [nn.Conv2d, nn.ReLU] * 2
    assert len(folded._modules) == 4


@pytest.mark.parametrize('hooked', [0, 1])
def test_modules_with_hooks_are_left_alone(fold, hooked):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net[hooked].register_forward_hook(lambda module, args, output: output.exp())
    folded = fold(net)
    assert called(folded) == [nn.Conv2d, [ChannelAffine, nn.BatchNorm2d][hooked]]


def test_norm_of_unknown_type_runs_as_it_is(fold):
    class Shifted(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    folded = fold(nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(4)))
    assert count(folded, Shifted) == 1


def test_norms_can_stay_behind_their_convolutions(fold):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU())
    folded = fold(net, into_convs=False)
    expected = [nn.Conv2d, ChannelAffine, nn.ReLU, ChannelAffine, nn.Conv2d, nn.ReLU]
    assert called(folded) == expected
    assert [m.inplace for m in folded.children() if isinstance(m, ChannelAffine)] == [True, False]
    first = next(m for m in folded.modules() if isinstance(m, nn.Conv2d))
    assert torch.equal(first.weight, net[0].weight)
    assert first.weight.data_ptr() != net[0].weight.data_ptr()


def test_copies_of_branches_have_in_common_what_the_branches_have(shake, images):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    convert_norms(net, 2)
    shake(net).eval()
    for into_convs, in_common in ((True, 1), (False, 2)):
        memo = {}
        copies = [fold_norms(branch_view(net, j), into_convs, memo) for j in range(2)]
        convs = [[m for m in one.modules() if isinstance(m, nn.Conv2d)] for one in copies]
        assert sum(a is b for a, b in zip(*convs, strict=True)) == in_common
        assert not {p.data_ptr() for one in copies for p in one.parameters()} & {p.data_ptr() for p in net.parameters()}
        for j in range(2):
            torch.testing.assert_close(copies[j](images(2)), branch_view(net, j)(images(2)))


def test_later_changes_of_the_module_do_not_reach_the_copy(shake, images):
    net = shake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))).eval()
    folded = fold_norms(net)
    expected = folded(images(2))
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.zero_()
    assert torch.equal(folded(images(2)), expected)


def test_module_in_training_stays_in_training(shake, images):
    net = shake(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()))
    net[0].eval()
    folded = fold_norms(net)
    assert [m.training for m in net.modules()] == [True, False, True, True]
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in folded.modules())
    torch.testing.assert_close(folded(images(2)), copy.deepcopy(net).eval()(images(2)))


def test_blocks_that_can_be_reparameterized_become_one_convolution(fold):
    net = timm.create_model('repvgg_a0', num_classes=5)
    blocks = sum(hasattr(m, 'reparameterize') for m in net.modules())
    folded = fold(net, size=32)
    assert count(folded, nn.Conv2d) == blocks
    assert count(folded, _BatchNorm, ChannelAffine) == 0
    assert count(fold(net, size=32, into_convs=False), ChannelAffine) == count(net, _BatchNorm)


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointed_model_is_folded_through(fold, reentrant):
    net = timm.create_model('test_resnet', num_classes=5)
    net.set_grad_checkpointing()
    usual = timm.layers.use_reentrant_ckpt()
    timm.layers.set_reentrant_ckpt(reentrant)
    try:
        folded = fold(net, size=32)
    finally:
        timm.layers.set_reentrant_ckpt(usual)
    assert count(folded, _BatchNorm, ChannelAffine) == 0
    assert net.grad_checkpointing


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_data_type_is_kept(shake, images, dtype):
    net = shake(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval().to(dtype)
    folded = fold_norms(net)
    assert {p.dtype for p in folded.parameters()} == {dtype}
    expected = net.float()(images(2))
    torch.testing.assert_close(folded(images(2).to(dtype)).float(), expected, rtol=0.05, atol=0.05)


def test_folding_rounds_once():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    norm = net[1]
    norm.running_var.uniform_(0.1, 3)
    conv = next(m for m in fold_norms(net).modules() if isinstance(m, nn.Conv2d))
    exact = net[0].weight.double() / (norm.running_var.double() + norm.eps).sqrt()[:, None, None, None]
    assert torch.equal(conv.weight, exact.float())


def test_norm_without_running_statistics_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)))
    with pytest.raises(ValueError, match=r"norm '1\.0' has no running statistics.*Use track_running_stats=True"):
        fold_norms(net.eval())


def test_module_that_cannot_be_traced_is_refused():
    def forward(net, x):
        return net.norm(x) if x.mean() > 0 else F.relu(x)

    with pytest.raises(ValueError, match='forward of Net cannot be traced by torch.fx.*register_notrace_module'):
        fold_norms(Net(forward, norm=nn.BatchNorm2d(3)))
