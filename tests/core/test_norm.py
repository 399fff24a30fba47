"""Resolution-aware norms, their conversion, and branch views on hand-made modules."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from timm_drnet.core.norm import ResolutionAwareNorm, SingleValueNorm, branch_view, convert_norms, resize


def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 1), BatchNormAct2d(6, act_layer=nn.SiLU)),
    )


def test_conversion_gives_every_norm_a_private_copy_for_each_resolution():
    net = make_net()
    first = net[1]
    nn.init.constant_(first.weight, 3.0)
    assert convert_norms(net, 3) == 2
    norms = net[1].norms
    assert norms[0] is first
    assert [type(n) for n in norms] == [nn.BatchNorm2d] * 3
    assert [type(n) for n in net[3][1].norms] == [BatchNormAct2d] * 3
    assert all(isinstance(n.act, nn.SiLU) for n in net[3][1].norms)
    for norm in norms:
        assert torch.equal(norm.weight, torch.full((4,), 3.0))
    tensors = [t for norm in norms for t in norm.state_dict(keep_vars=True).values()]
    assert len({t.data_ptr() for t in tensors}) == len(tensors) == 15


def test_private_copies_have_nothing_in_common():
    norm = BatchNormAct2d(4).requires_grad_(False).eval()
    ran = []
    norm.register_forward_hook(lambda *_: ran.append(1))
    net = nn.Sequential(norm)
    convert_norms(net, 2)
    twin = net[0].norms[1]
    assert not any(p.requires_grad for p in twin.parameters())
    assert not twin.training
    twin(torch.randn(2, 4, 3, 3))
    assert ran == [1]
    twin.register_forward_hook(lambda *_: pytest.fail('the hook of the other norm ran'))
    twin.register_buffer('extra', torch.zeros(1), persistent=False)
    twin.act.register_forward_hook(lambda *_: pytest.fail('the activation of the other norm ran'))
    twin.train().requires_grad_()
    norm(torch.randn(2, 4, 3, 3))
    assert not norm.training
    assert not norm.weight.requires_grad
    assert dict(norm.named_buffers()).keys() == {'running_mean', 'running_var', 'num_batches_tracked'}
    assert not norm._non_persistent_buffers_set


@pytest.mark.parametrize('norm', [nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)])
def test_norms_without_weights_or_statistics_are_copied(norm):
    net = nn.Sequential(norm)
    convert_norms(net, 2)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(branch_view(net, 1)(x), branch_view(net, 0)(x))
    assert net[0].norms[1].state_dict().keys() == norm.state_dict().keys()


@pytest.mark.parametrize('norm', [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d])
def test_conversion_covers_all_batch_norms(norm):
    net = nn.Sequential(norm(4))
    assert convert_norms(net, 2) == 1
    assert [type(n) for n in net[0].norms] == [norm] * 2


@pytest.mark.parametrize('norm', [nn.Identity(), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)])
def test_conversion_leaves_other_norms(norm):
    net = nn.Sequential(norm)
    assert convert_norms(net, 2) == 0
    assert net[0] is norm


@pytest.mark.parametrize('same_parent', [True, False])
def test_norm_in_two_places_stays_one(same_parent):
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(norm, norm) if same_parent else nn.Sequential(nn.Sequential(norm), nn.Sequential(norm))
    assert convert_norms(net, 2) == 1
    first, second = (net[0], net[1]) if same_parent else (net[0][0], net[1][0])
    assert first is second
    assert isinstance(first, ResolutionAwareNorm)
    assert branch_view(net, 1)(torch.ones(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_resolution_aware_norm_refuses_to_guess():
    net = make_net()
    convert_norms(net, 2)
    with pytest.raises(RuntimeError, match=r'model\.forward_at'):
        net(torch.randn(2, 3, 8, 8))


def test_view_shares_everything_and_copies_only_containers():
    net = make_net()
    convert_norms(net, 2)
    modules = list(net.modules())
    view = branch_view(net, 1)
    assert view is not net
    assert view[3] is not net[3]
    assert (view[0], view[2], view[3][0]) == (net[0], net[2], net[3][0])
    assert view[1] is net[1].norms[1]
    assert view[3][1] is net[3][1].norms[1]
    assert all(p is q for p, q in zip(view[0].parameters(), net[0].parameters(), strict=True))
    assert list(net.modules()) == modules  # the model has not noticed


def test_view_of_a_module_without_norms_is_the_module():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert branch_view(module, 0) is module


def test_view_runs_the_norm_of_its_index():
    net = nn.Sequential(nn.BatchNorm2d(2))
    convert_norms(net, 3)
    for j, norm in enumerate(net[0].norms):
        nn.init.constant_(norm.bias, j)
    x = torch.zeros(1, 2, 3, 3)
    for j in range(3):
        assert torch.equal(branch_view(net, j).eval()(x), torch.full_like(x, j))


def test_view_follows_mode_and_sync_conversion():
    net = make_net()
    convert_norms(net, 2)
    net = convert_sync_batchnorm(net)
    assert isinstance(net[1], ResolutionAwareNorm)
    assert [type(n) for n in net[1].norms] == [nn.SyncBatchNorm] * 2
    assert isinstance(branch_view(net, 1)[3][1], nn.SyncBatchNorm)
    assert isinstance(branch_view(net, 1)[3][1].act, nn.SiLU)
    assert branch_view(net, 1)[1].training
    assert not branch_view(net.eval(), 1)[1].training


def test_view_deep_copies_with_its_own_weights():
    net = make_net()
    convert_norms(net, 2)
    twin = copy.deepcopy(branch_view(net, 1))
    nn.init.zeros_(twin[0].weight)
    assert net[0].weight.any()


def test_single_value_is_normalized_with_running_statistics_and_leaves_them():
    norm = nn.BatchNorm2d(4)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    norm.running_var.uniform_(1, 2)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(1, 4, 1, 1, requires_grad=True)
    y = SingleValueNorm(norm)(x)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    expected = (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    torch.testing.assert_close(x.grad, scale[None, :, None, None])
    assert norm.bias.grad is not None
    assert norm.training
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key])


def test_single_value_norm_takes_larger_maps_as_usual():
    norm, usual = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    x = torch.randn(1, 4, 2, 1)
    assert torch.equal(SingleValueNorm(norm)(x), usual(x))
    for key, value in norm.state_dict().items():
        assert torch.equal(value, usual.state_dict()[key])


def test_guarded_view_keeps_activation_and_guards_only_in_training():
    net = nn.Sequential(BatchNormAct2d(4))
    convert_norms(net, 2)
    x = torch.randn(1, 4, 1, 1)
    torch.testing.assert_close(branch_view(net, 1, guard_single_value=True)(x), x.relu(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match='more than 1 value'):
        branch_view(net, 1)(x)
    assert branch_view(net.eval(), 1, guard_single_value=True)[0] is net[0].norms[1]


def test_resize_is_the_identity_at_matching_size():
    x = torch.randn(2, 3, 8, 8)
    assert resize(x, 8) is x


@pytest.mark.parametrize('size', [5, 16])
def test_resize_is_bilinear_without_antialiasing(size):
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(resize(x, size), F.interpolate(x, (size, size), mode='bilinear', align_corners=False))


def test_resize_averages_pixels_by_hand():
    x = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])
    assert resize(x, 1).item() == 1.5
