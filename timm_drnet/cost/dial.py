"""The dial: one number that trades cost against accuracy after training, with the model as it is.

The paper chooses argmax(log p_j) and trains one model for each budget. Here the choice is
argmax(log p_j - w * C_j / C_max), with a cost weight w: 0 is the paper, more is cheaper, less than 0 more expensive.
Images whose resolution the predictor is least sure of are the first to move. Which w meets a budget is read off the
predictor's scores for some images; labels are not needed.
"""

import math
from dataclasses import dataclass

import torch

from .costs import Costs

TOLERANCE = 0.01
"""How far from the target the average cost may be, as a fraction of it."""


@dataclass(frozen=True)
class Setting:
    """One position of the dial."""

    cost_weight: float
    """The w of a predictor's choice; 0 for a cascade."""
    cost: float
    """Average per image, predictor and every rung included, in the unit of the budget."""
    shares: tuple[float, ...]
    """Of the images that take each resolution, largest first."""
    top1: float | None
    """Per cent of the images classified correctly; None without labels."""
    thresholds: tuple[float | None, ...] = ()
    """Of a cascade, for each candidate but the largest."""
    agreement: float | None = None
    """Of a cascade: per cent of the images whose answer is that of the largest resolution."""


def check_target(target: float | None, unit: str) -> None:
    """Refuse a target that is no cost.

    Args:
        target: Average cost of an image, or None for no target.
        unit: ``GFLOPs`` or ``ms``.

    Raises:
        ValueError: If it is not a positive number.
    """
    if target is not None and not (target > 0 and math.isfinite(target)):
        raise ValueError(f'Invalid target {target}: use an average cost per image in {unit}.')


def find_cost_weight(scores: torch.Tensor, costs: Costs, target: float) -> float:
    """Find the cost weight at which the average cost is nearest to a target.

    The average falls in steps as the weight grows, one at each weight at which some image changes its resolution. All
    of these are known, so the search is exact. The result lies in the middle of its step, so that rounding changes no
    choice.

    Args:
        scores: The predictor's, (N, M).
        costs: Of the candidates.
        target: Average cost of an image, predictor included.

    Returns:
        The weight; 0 where that gives the same shares.

    Raises:
        ValueError: If the nearest average is more than 1 % away.
    """
    check_target(target, costs.unit)
    above, below = _around(scores, costs, _one_on_each_step(scores, costs), target)
    as_trained = setting(scores, costs, 0.0)  # among equal scores the first, which no weight beside it does
    best = min(above, below, as_trained, key=lambda one: abs(one.cost - target))
    if abs(best.cost - target) > TOLERANCE * target:
        most, least = (extreme(costs.backbone) + costs.predictor for extreme in (max, min))
        raise ValueError(
            f'Invalid target {target:g} {costs.unit}: on these {len(scores)} images the nearest averages are'
            f' {above.cost:.4g} and {below.cost:.4g}, and the resolutions cost from {most:.4g} to {least:.4g}. Use one'
            ' of the averages, or more images.')
    return 0.0 if as_trained.shares == best.shares else best.cost_weight


def budget_curve(
        scores: torch.Tensor,
        costs: Costs,
        points: int,
        hits: torch.Tensor | None = None,
) -> tuple[Setting, ...]:
    """Positions of the dial whose average costs are about evenly spaced.

    Args:
        scores: The predictor's, (N, M).
        costs: Of the candidates.
        points: Positions to look for; those that do not differ are left out, and weight 0 is among them.
        hits: Whether each image is classified correctly at each resolution, (N, M) booleans, or None.

    Returns:
        The positions, the most expensive first.
    """
    weights = _one_on_each_step(scores, costs)
    found = [setting(scores, costs, 0.0, hits)]
    for target in torch.linspace(max(costs.backbone), min(costs.backbone), points).add(costs.predictor).tolist():
        nearest = min(_around(scores, costs, weights, target), key=lambda one: abs(one.cost - target))
        found.append(setting(scores, costs, nearest.cost_weight, hits))
    ordered = sorted(found, key=lambda one: (-one.cost, one.cost_weight != 0))
    different: list[Setting] = []
    for one in ordered:
        if not different or one.shares != different[-1].shares:
            different.append(one)
    return tuple(different)


def setting(
        scores: torch.Tensor,
        costs: Costs,
        cost_weight: float,
        hits: torch.Tensor | None = None,
) -> Setting:
    """Measure one position of the dial.

    Args:
        scores: The predictor's, (N, M).
        costs: Of the candidates.
        cost_weight: The position.
        hits: As for `budget_curve`.

    Returns:
        The position with its cost, shares and accuracy.
    """
    choice = _choose(scores, costs, cost_weight)
    counts = torch.bincount(choice, minlength=scores.shape[1]).tolist()
    top1 = None if hits is None else 100 * float(hits.gather(1, choice[:, None]).double().mean())
    average = sum(n * c for n, c in zip(counts, costs.backbone, strict=True)) / len(scores) + costs.predictor
    return Setting(cost_weight, average, tuple(n / len(scores) for n in counts), top1)


def _one_on_each_step(scores: torch.Tensor, costs: Costs) -> torch.Tensor:
    """Weights, (steps,), sorted: one between any two next to each other at which an image changes its resolution."""
    scores = scores.double()
    relative = costs.relative
    changes = [
        (scores[:, i] - scores[:, j]) / (relative[i] - relative[j])
        for i in range(len(relative)) for j in range(i) if relative[i] != relative[j]]
    at = torch.cat(changes).unique() if changes else scores.new_zeros(1)
    return torch.cat([at[:1] - 1, (at[1:] + at[:-1]) / 2, at[-1:] + 1])


def _around(scores: torch.Tensor, costs: Costs, weights: torch.Tensor, target: float) -> tuple[Setting, Setting]:
    """The positions next to a target, the more expensive one first; the average falls as the weight grows."""
    first, last = 0, len(weights) - 1
    while last - first > 1:
        middle = (first + last) // 2
        if setting(scores, costs, float(weights[middle])).cost > target:
            first = middle
        else:
            last = middle
    return setting(scores, costs, float(weights[first])), setting(scores, costs, float(weights[last]))


def _choose(scores: torch.Tensor, costs: Costs, cost_weight: float) -> torch.Tensor:
    """Choices, (N,). Scores are log p up to a summand that is the same for all candidates of an image."""
    scores = scores.double()
    return (scores - cost_weight * torch.tensor(costs.relative, dtype=scores.dtype)).argmax(dim=1)
