"""The curve of all budgets: accuracy over cost as the dial turns, beside the static line."""

from dataclasses import dataclass

from ..core.drnet import DRNet
from ..cost.costs import Costs
from ..cost.dial import budget_curve
from ..cost.flops import cost_table
from ..cost.static_line import CurvePoint
from .answers import Answers
from .budgets import cascade_curve

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
    costs = Costs('GFLOPs', tuple(row.backbone_flops / 1e9 for row in rows), rows[0].predictor_flops / 1e9)
    right = answers.hits[..., 0]
    positions = (
        cascade_curve(answers, costs, _POINTS, right) if answers.scores is None
        else budget_curve(answers.scores, costs, _POINTS, right))
    points = {one.cost: CurvePoint(one.cost, one.top1) for one in positions if one.top1 is not None}
    return tuple(sorted(points.values(), key=lambda one: one.gflops))
