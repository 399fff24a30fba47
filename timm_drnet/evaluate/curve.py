"""The curve of all budgets: accuracy over cost as the dial turns, beside the static line."""

from dataclasses import dataclass

import torch

from ..cascade.dial import choose_thresholds, measure_setting, stop
from ..core.drnet import DRNet
from ..cost.costs import Costs
from ..cost.dial import budget_curve
from ..cost.flops import cost_table
from ..cost.static_line import CurvePoint
from .answers import Answers

_POINTS = 40


@dataclass(frozen=True)
class Curve:
    """The model at all budgets. Both lines have at least one point, the cheapest first."""

    budgets: tuple[CurvePoint, ...]
    """The model, its dial set to one budget after the other."""
    static: tuple[CurvePoint, ...]
    """The backbone held at the candidates that make up the static line."""


def all_budgets(model: DRNet, answers: Answers) -> tuple[CurvePoint, ...]:
    """Turn the dial of a DRNet through all of its positions, as `set_budget` would for evenly spaced costs in FLOPs.

    Labels say how accurate each position is; they do not choose it.

    Args:
        model: A DRNet with a router; it is not changed.
        answers: Of labelled images.

    Returns:
        The positions, the cheapest first.
    """
    rows = cost_table(model)
    costs = Costs('GFLOPs', tuple(row.backbone_flops / 1e9 for row in rows), 0.0)
    right = answers.hits[..., 0]
    if answers.scores is None:
        return _of_cascade(answers, right, costs)
    total = [row.total_flops / 1e9 for row in rows]
    positions = budget_curve(answers.scores, costs, _POINTS, right)
    points = (
        CurvePoint(sum(s * c for s, c in zip(one.shares, total, strict=True)), one.top1)
        for one in positions if one.top1 is not None)
    return tuple(sorted(points, key=lambda one: one.gflops))


def _of_cascade(answers: Answers, right: torch.Tensor, costs: Costs) -> tuple[CurvePoint, ...]:
    sure = answers.probabilities[:, :, 0]
    agrees = answers.classes[:, :, 0] == answers.classes[:, :1, 0]
    points = {}
    for target in torch.linspace(min(costs.backbone), max(costs.backbone), _POINTS).tolist():
        try:
            thresholds = choose_thresholds(sure, agrees, costs.backbone, target).thresholds
        except ValueError:  # no setting comes near enough
            continue
        cost = measure_setting(thresholds, sure, agrees, costs.backbone).cost
        points[cost] = float(right.gather(1, stop(thresholds, sure)[:, None]).double().mean())
    return tuple(CurvePoint(cost, 100 * top1) for cost, top1 in sorted(points.items()))
