"""Calibration: statistics equal those of PyTorch's own `update_bn` on plain models, and nothing else changes."""

import pytest
import torch
from torch.optim.swa_utils import update_bn

from timm_drnet.core.norm import resize
from timm_drnet.train.norm_statistics import calibrate_norms


@pytest.fixture
def batches(images):
    """Three batches of images whose mean and variance are not those of the model's statistics."""
    return [2 + 3 * images(8, seed=seed) for seed in range(3)]


def test_as_update_bn_on_plain_models(tiny, make_plain, batches):
    plain = [make_plain(tiny, j) for j in range(3)]
    for model, size in zip(plain, tiny.resolutions, strict=True):
        update_bn([resize(x, size) for x in batches], model)
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    assert calibrate_norms(tiny, batches) == 24
    x = 2 + 3 * torch.randn(4, 3, 64, 64)
    for j, (model, size) in enumerate(zip(plain, tiny.resolutions, strict=True)):
        torch.testing.assert_close(tiny.forward_at(x, j), model.eval()(resize(x, size)), rtol=1e-4, atol=1e-5)
        wanted = {k: v for k, v in model.state_dict().items() if 'running' in k}
        found = {k: v for k, v in tiny.branch(j).state_dict().items() if 'running' in k}
        assert found.keys() == wanted.keys()
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key])
    changed = {k for k, v in tiny.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {k for k in before if '.norms.' in k and ('running' in k or 'num_batches' in k)}


def test_a_smaller_last_batch_is_left_out(tiny, batches):
    assert calibrate_norms(tiny, [batches[0], batches[1][:3]]) == 8
    found = {k: v.clone() for k, v in tiny.state_dict().items()}
    calibrate_norms(tiny, batches[:1])
    assert all(torch.equal(v, found[k]) for k, v in tiny.state_dict().items())


def test_pairs_with_labels_will_do(tiny, batches):
    calibrate_norms(tiny, [(x, torch.zeros(8)) for x in batches])
    found = {k: v.clone() for k, v in tiny.state_dict().items()}
    calibrate_norms(tiny, batches)
    assert all(torch.equal(v, found[k]) for k, v in tiny.state_dict().items())


def test_statistics_that_are_kept(tiny, batches):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    calibrate_norms(tiny, batches, keep=[0])
    for key, value in tiny.state_dict().items():
        assert torch.equal(value, before[key]) != (
            ('.norms.1.' in key or '.norms.2.' in key) and ('running' in key or 'num_batches' in key)), key


@pytest.mark.parametrize('training', [True, False])
def test_mode_and_momentum_are_as_before(tiny, batches, training):
    tiny.train(training)
    modes = [(m.training, getattr(m, 'momentum', None)) for m in tiny.modules()]
    calibrate_norms(tiny, batches)
    assert [(m.training, getattr(m, 'momentum', None)) for m in tiny.modules()] == modes


def test_nothing_is_lost_if_reading_fails(tiny, batches):
    def failing():
        yield batches[0]
        raise OSError('the disk is gone')

    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    with pytest.raises(OSError, match='the disk is gone'):
        calibrate_norms(tiny, failing())
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())
    assert not any(m.training for m in tiny.modules())


@pytest.mark.parametrize(('wrong', 'told'), [([], 'no images to calibrate on'), ([1, 1], 'one image at a time')])
def test_too_few_images(tiny, images, wrong, told):
    with pytest.raises(ValueError, match=told):
        calibrate_norms(tiny, [images(n) for n in wrong])


def test_shared_norms(make_tiny, batches):
    with pytest.raises(ValueError, match='share their norms.*resolution_aware_norm=True'):
        calibrate_norms(make_tiny(resolution_aware_norm=False), batches)
