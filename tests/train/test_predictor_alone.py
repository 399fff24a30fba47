"""Training the predictor alone: it learns, and the backbone does not."""

import math
from dataclasses import replace

import pytest
import torch

from timm_drnet.train.predictor import train_predictor


@pytest.fixture
def problem(make_tiny, images):
    """A model whose largest resolution alone is right about bright images and whose smallest is about dark ones."""
    model = make_tiny(resolutions=(64, 32), num_classes=2).eval()

    def forward_at(x, choice):
        assert not model.backbone.training
        bright = x.mean(dim=(1, 2, 3)) > 0
        right = bright == (choice == 0)
        return torch.stack([torch.where(right, 4.0, -4.0), x.new_zeros(len(x))], dim=1)

    model.forward_at = forward_at
    x = images(64) + torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)[:, None, None, None]
    return model, x, (x.mean(dim=(1, 2, 3)) <= 0).long()


@pytest.mark.parametrize(('kwargs', 'mixed'), [
    ({}, False), ({'joint_resolutions': 'all', 'predictor_loss': 'utility'}, False), ({}, True)])
def test_it_learns_which_resolution_is_right(problem, kwargs, mixed):
    """With a caller's autocast around the whole training, too, which keeps copies of weights."""
    model, x, wanted = problem
    model.args = replace(model.args, **kwargs)
    backbone = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    told = []
    batches = [(x[i:i + 16], torch.zeros(16, dtype=torch.int64)) for i in range(0, 64, 16)]
    with torch.autocast('cpu', torch.bfloat16, enabled=mixed):
        train_predictor(model, batches, epochs=12, lr=3e-3, progress=lambda *args: told.append(args))
    assert (model.predict_resolution(x) == wanted).float().mean() > 0.95
    assert [epoch for epoch, _, _ in told] == list(range(1, 13))
    assert told[-1][1] < 0.5 * told[0][1]
    assert all(sum(shares) == pytest.approx(1) for _, _, shares in told)
    assert all(torch.equal(v, backbone[k]) for k, v in model.backbone.state_dict().items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_target_is_kept(problem):
    model, x, _ = problem
    model.args = replace(model.args, cost=(2.0, 1.0, 0.1), alpha=1.2, eta=20.0)
    batches = [(x[i:i + 16], torch.zeros(16, dtype=torch.int64)) for i in range(0, 64, 16)]
    train_predictor(model, batches, epochs=15, lr=3e-3)
    p = model.predictor_scores(x).softmax(dim=1).mean(dim=0).detach()
    assert float(p @ torch.tensor([2.0, 1.0])) < 1.3  # 1.5 without a target


def test_nothing_is_lost_if_reading_fails(problem):
    model, x, _ = problem

    def failing():
        yield x[:8], torch.zeros(8, dtype=torch.int64)
        raise OSError('the disk is gone')

    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(OSError, match='the disk is gone'):
        train_predictor(model, failing(), epochs=2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(('kwargs', 'told'), [
    ({'epochs': 0}, 'Invalid epochs 0'), ({'epochs': 1, 'lr': 0.0}, 'Invalid lr 0.0'),
    ({'epochs': 1, 'batches': []}, 'no batches of two or more images'),
    ({'epochs': 1, 'batches': [(torch.full((2, 3, 64, 64), math.nan), torch.zeros(2, dtype=torch.int64))]},
     'loss of the predictor is not finite')])
def test_invalid_arguments(problem, kwargs, told):
    model, x, _ = problem
    arguments = {'batches': [(x[:8], torch.zeros(8, dtype=torch.int64))], **kwargs}
    with pytest.raises(ValueError, match=told):
        train_predictor(model, **arguments)


def test_pretrain_stage(make_tiny):
    with pytest.raises(ValueError, match='no predictor in use'):
        train_predictor(make_tiny(stage='pretrain'), [], 1)
