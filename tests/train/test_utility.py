"""Utility targets: the best soft assignment for a budget, found another way; and the loss inside timm's task."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import ClassificationTask

import timm_drnet
from timm_drnet.train.utility import utility_loss, utility_targets

COSTS = (4.0, 2.5, 1.0)


def losses_of(images=64):
    return torch.rand(images, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 1.5, 2.0])


def reference(losses, costs, alpha, tau):
    """The targets by bisection in float64, one price at a time."""
    losses, costs = losses.numpy().astype(np.float64), np.array(costs)

    def targets(price):
        u = losses + price * costs / costs.max()
        q = np.exp((u.min(axis=1, keepdims=True) - u) / tau)
        return q / q.sum(axis=1, keepdims=True)

    low, high = 0.0, 1e3
    if (targets(0.0) @ costs).mean() <= alpha:
        return targets(0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (targets(middle) @ costs).mean() > alpha else (low, middle)
    return targets(high)


@pytest.mark.parametrize('alpha', [1.2, 2.0, 2.6, 3.9])
@pytest.mark.parametrize('tau', [0.1, 1.0])
def test_targets_spend_the_budget(alpha, tau):
    q = utility_targets(losses_of(), COSTS, alpha, tau)
    torch.testing.assert_close(q.double(), torch.tensor(reference(losses_of(), COSTS, alpha, tau)), rtol=0, atol=1e-4)
    spent = float((q @ torch.tensor(COSTS)).mean())
    assert spent <= alpha + 1e-4
    assert spent == pytest.approx(alpha, abs=1e-3) or torch.equal(q, utility_targets(losses_of(), COSTS, None, tau))


def test_no_assignment_at_the_same_cost_is_better():
    """The targets minimize expected loss minus tau times entropy: a step that keeps rows and cost gains nothing."""
    tau, losses = 0.5, losses_of(8)
    q = utility_targets(losses, COSTS, 2.2, tau).double()

    def objective(q):
        return float((q * losses).sum() + tau * torch.special.xlogy(q, q).sum())

    generator = torch.Generator().manual_seed(0)
    constraints = torch.zeros(9, 8, 3, dtype=torch.float64)
    constraints[range(8), range(8)] = 1.0
    constraints[8] = torch.tensor(COSTS)
    basis = torch.linalg.svd(constraints.flatten(1)).Vh[9:]
    for _ in range(50):
        step = torch.randn(len(basis), generator=generator, dtype=torch.float64) @ basis
        assert objective(q + 1e-3 * step.view(8, 3)) > objective(q) - 1e-8


@pytest.mark.parametrize(('costs', 'alpha'), [((2.0, 2.0), 1.0), ((2.0,), 1.0), ((3.0, 1.0), 0.5), ((3.0, 1.0), 9.0)])
def test_targets_that_cannot_meet_the_budget_stay_finite(costs, alpha):
    q = utility_targets(losses_of()[:, :len(costs)], costs, alpha, 0.5)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(64))
    if alpha < min(costs) < max(costs):
        assert q[:, -1].min() > 0.999


def make_model(**kwargs):
    torch.manual_seed(0)
    return timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), num_classes=5, predictor='inverted_residual', predictor_size=32,
        joint_resolutions='all', predictor_loss='utility', **kwargs).train()


@pytest.mark.parametrize('share', [0.8, None])
def test_predictor_learns_from_the_utility_inside_timm_s_task(share):
    """Its gradient is that of KL(q || p) and the FLOPs loss; the backbone's is that of the summed criterion alone."""
    costs = [row.backbone_flops / 1e9 for row in timm_drnet.cost_table(make_model())]
    alpha = None if share is None else share * costs[1]
    model = make_model(alpha=alpha, eta=0.7, tau=0.5)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 3, 64, 64, generator=generator), torch.randint(5, (6,), generator=generator)
    twin = copy.deepcopy(model)
    logits = [twin.forward_at(x, j) for j in range(3)]
    summed = sum(F.cross_entropy(each, y) for each in logits)
    losses = torch.stack([F.cross_entropy(each, y, reduction='none') for each in logits], dim=1).detach()
    q = torch.tensor(reference(losses, costs, 1e9 if alpha is None else alpha, 0.5)).float()
    p = twin.predictor(F.interpolate(x, size=(32, 32), mode='bilinear')).softmax(dim=1)
    spent = 0 if alpha is None else ((p.mean(0) @ torch.tensor(costs) - alpha) / (costs[0] - costs[2])).clamp(min=0)
    reg = 0.7 * spent
    (summed + F.kl_div(p.log(), q, reduction='batchmean') + reg).backward()

    loss = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)(x, y)['loss']
    loss.backward()

    assert loss.item() == pytest.approx((summed + reg).item(), rel=1e-5)
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f'{n}: {m}')
    assert any(one.grad.abs().max() > 1e-5 for one in model.predictor.parameters())


def test_utility_needs_to_know_every_resolution():
    with pytest.raises(ValueError, match="Invalid predictor_loss 'utility': use 'expected', or 'utility' with"):
        timm.create_model('drnet', backbone='test_resnet', predictor_loss='utility')


def test_loss_is_zero_at_the_targets_and_finite_where_a_probability_is_not():
    losses = losses_of()
    q = utility_targets(losses, COSTS, 2.0, 0.2)
    assert utility_loss(q, losses, COSTS, 2.0, 0.2).item() == pytest.approx(0.0, abs=1e-6)
    p = torch.tensor([[1.0, 0.0, 0.0]]).repeat(64, 1)
    assert utility_loss(p, losses, COSTS, 2.0, 0.2).isfinite()
