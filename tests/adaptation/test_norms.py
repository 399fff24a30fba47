"""Statistics and tuning of one branch's norms, beside an independent computation."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from timm_drnet.adaptation.adapt import default_resolutions, drnet_to_adapt
from timm_drnet.adaptation.norms import estimate_statistics, get_state, mix_statistics, private_norms
from timm_drnet.adaptation.tuning import tune_norms


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def small(x):
    return F.interpolate(x, (48, 48), mode='bilinear', align_corners=False)


@pytest.fixture
def model(plain):
    """A cascade in eval mode."""
    return drnet_to_adapt(plain, (64, 48))


def test_statistics_are_those_of_all_images(model, plain, images):
    """The first norm sees the same whatever batch an image comes in, so its statistics are those of one big batch."""
    x = images(48, 64)
    before = get_state(private_norms(model, 1))
    found = estimate_statistics(model, 1, [x[:16], x[16:32], x[32:]])
    for now, was in zip(get_state(private_norms(model, 1)), before, strict=True):
        assert all(torch.equal(now[key], was[key]) for key in was)  # the model is as it was
    features = plain.conv1[0](small(x))
    mean, var = features.mean(dim=(0, 2, 3)), features.var(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(found[0]['running_mean'], mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0]['running_var'], var, rtol=1e-3, atol=1e-5)


def test_statistics_wait_for_the_device_in_no_norm(model, images, waits):
    """As PyTorch's own plain average, momentum None, would: it reads a counter of each."""
    with waits:
        estimate_statistics(model, 1, [images(16, 64), images(16, 64)])
    assert set(waits.seen) <= {'_to_copy'}  # to another type, not device


def test_mixing(model, images):
    source = get_state(private_norms(model, 1))
    new = estimate_statistics(model, 1, [images(16, 64)])
    mixed = mix_statistics(source, new, 0.25)
    for old, other, both in zip(source, new, mixed, strict=True):
        torch.testing.assert_close(both['running_var'], 0.75 * old['running_var'] + 0.25 * other['running_var'])
        assert torch.equal(both['weight'], old['weight'])


def test_tuning_is_that_of_a_plain_model(model, plain, images):
    """Two epochs equal those of a plain copy, trained by a loop of its own; all else stays to the last bit."""
    batches = list(images(36, 64).split(12))
    teacher, student = plain, copy.deepcopy(plain)
    student.requires_grad_(False)
    wanted = [p.requires_grad_(True) for norm in norms_of(student) for p in norm.parameters()]
    optimizer = torch.optim.Adam(wanted)
    expected = []
    for step, x in enumerate(batches * 2):
        for group in optimizer.param_groups:
            group['lr'] = 0.01 * min(1, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * step / 6))
        log_p, log_q = teacher(x).log_softmax(dim=1).detach(), student(small(x)).log_softmax(dim=1)
        optimizer.zero_grad()
        loss = (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()
        loss.backward()
        expected.append(loss.item())
        optimizer.step()

    state = copy.deepcopy(model.state_dict())
    grad = {name: p.requires_grad for name, p in model.named_parameters()}
    losses = []
    with torch.no_grad():
        taught = [(x, plain(x)) for x in batches]
    tune_norms(model, 1, lambda epoch: taught, 2, 3, 0.01, after_epoch=lambda epoch, loss, state: losses.append(loss))
    for norm, reference in zip(private_norms(model, 1), norms_of(student), strict=True):
        torch.testing.assert_close(norm.weight, reference.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.bias, reference.bias, rtol=1e-4, atol=1e-5)
        assert torch.equal(norm.running_var, reference.running_var)
    assert losses == pytest.approx([sum(expected[:3]) / 3, sum(expected[3:]) / 3], rel=1e-4)
    for key, value in model.state_dict().items():
        changed = '.norms.1.' in key and key.endswith(('weight', 'bias'))
        assert changed or torch.equal(value, state[key]), key
    assert {name: p.requires_grad for name, p in model.named_parameters()} == grad
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_not_finite(model, images):
    x = images(12, 64)
    with pytest.raises(ValueError, match='smaller lr'):
        tune_norms(model, 1, lambda epoch: [(x, torch.full((12, 5), math.nan))], 1, 1, 0.01)


def test_too_few_images(model, images):
    with pytest.raises(ValueError, match='Too few images'):
        estimate_statistics(model, 1, [images(1, 64)])


def test_default_is_the_backbones(plain):
    assert drnet_to_adapt(plain).resolutions == (64, 56, 48, 40)
    assert default_resolutions(32) == (32, 24, 16)  # 6/7 and 5/7 of it are the same
    assert timm.create_model('test_resnet').pretrained_cfg['input_size'][-1] != 64
