"""What a dial can do, read off answers that were collected anyway."""

from ..core.drnet import DRNet
from ..cost.budget import (
    Budget,
    CascadeAnswers,
    budget_curve,
    cascade_budget,
    find_cost_weight,
    setting,
)
from ..cost.costs import measure_costs
from .answers import Answers


def budget_of(model: DRNet, answers: Answers, target: float, points: int = 15) -> Budget:
    """Find the position of a DRNet's dial that meets a target.

    Args:
        model: The DRNet; it is not changed.
        answers: Of the DRNet.
        target: Average cost of an image, everything included, in the unit of the model's costs.
        points: Positions in the curve.

    Returns:
        The position and the curve.

    Raises:
        ValueError: If no position meets the target within 1 %.
    """
    costs = measure_costs(model)
    classes = answers.classes[:, :, 0]
    if answers.scores is None:
        return cascade_budget(
            CascadeAnswers(answers.probabilities[:, :, 0], classes, answers.labels), costs, target, points)
    hits = None if answers.labels is None else classes == answers.labels[:, None]
    chosen = setting(answers.scores, costs, find_cost_weight(answers.scores, costs, target), hits)
    return Budget(
        costs.unit, len(answers), budget_curve(answers.scores, costs, points, hits), chosen, target)
