"""Budgets: the dial of a DRNet, set by what an image may cost on average, read off its answers for some images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from ..core.drnet import DRNet
from ..cost.costs import Costs, measure_costs, set_cost_weight
from ..cost.dial import Setting, budget_curve, check_target, find_cost_weight, setting
from ..cost.thresholds import choose_thresholds, likelihood, stop
from .answers import Answers, collect_answers


@dataclass(frozen=True)
class Budget:
    """What the dial can do on some images."""

    unit: str
    """``GFLOPs`` or ``ms``."""
    images: int
    """Images that it was read off."""
    curve: tuple[Setting, ...]
    """From the most expensive position to the cheapest."""
    chosen: Setting | None = None
    """The position that meets the target; None if there was no target."""
    target: float | None = None
    """Average cost asked for, in the unit."""


def set_budget(
        model: DRNet,
        target: float | None,
        batches: Iterable[torch.Tensor | Sequence[torch.Tensor]] = (),
) -> Budget | None:
    """Turn the dial of a DRNet: from now on, spend a given average on an image in evaluation.

    A predictor's choice becomes argmax(log p_j - w * C_j / C_max), with ``cost_weight`` w such that the average over
    the given images meets the target within 1 %. A cascade gets the thresholds that meet it, and loses the rungs that
    do not pay, such that its answers are right as often as can be, as far as the largest resolution knows. Nothing is
    trained, and training is not affected. The position goes where the model goes: to the Hub, to ``deploy()`` and into
    exports.

    Args:
        model: A cascade, or a DRNet in the joint stage; changed in place.
        target: Average cost of an image, predictor included, in GFLOPs, or in milliseconds where the model's ``cost``
            is in milliseconds. None for a predictor's choice as trained, w = 0.
        batches: Images like those to come, (B, C, S, S), some hundreds or more, without labels, or pairs of images and
            labels, (B,); with labels, the result says what the accuracy becomes.

    Returns:
        What the dial does on these images; None without a target.

    Raises:
        ValueError: If no position meets the target within 1 %, there are no images, or a cascade is given no target.
            The model is as it was.
    """
    if target is None:
        if model.args.router == 'cascade':
            raise ValueError(
                'Invalid target None: the thresholds of a cascade are no part of its training, so there are none to go'
                ' back to; give an average cost, or set them by model.args = dataclasses.replace(model.args,'
                ' thresholds=...).')
        set_cost_weight(model, 0.0)
        return None
    budget = find_budget(model, target, batches)
    assert budget.chosen is not None
    turn_to(model, budget.chosen)
    return budget


def turn_to(model: DRNet, setting: Setting) -> None:
    """Turn the dial of a DRNet to a position.

    Args:
        model: Changed in place.
        setting: The position, found for this model; only its weight or its thresholds count.
    """
    if model.args.router == 'cascade':
        model.args = replace(model.args, thresholds=setting.thresholds)
    else:
        set_cost_weight(model, setting.cost_weight)


def find_budget(
        model: DRNet,
        target: float | None,
        batches: Iterable[torch.Tensor | Sequence[torch.Tensor]],
        points: int = 15,
) -> Budget:
    """Find the position of the dial that meets a target on some images, without turning to it.

    Args:
        model: As for `set_budget`, on the device to use. It keeps a cost that had to be measured, nothing else changes.
        target: As for `set_budget`. None for the curve alone.
        batches: As for `set_budget`. With labels, the accuracy of each position is given.
        points: Positions in the curve.

    Returns:
        The position and the curve.

    Raises:
        ValueError: As `collect_answers`, and if no position meets the target within 1 %.
    """
    check_target(target, measure_costs(model).unit)
    answers = collect_answers(model, batches, only_scores=model.args.router == 'predictor')
    return budget_of(model, answers, target, points)


def budget_of(model: DRNet, answers: Answers, target: float | None, points: int = 15) -> Budget:
    """Find the position of the dial that meets a target, by answers that were collected anyway.

    Args:
        model: The DRNet, which keeps a cost that had to be measured.
        answers: Of the DRNet.
        target: As for `find_budget`.
        points: Positions in the curve.

    Returns:
        The position and the curve.

    Raises:
        ValueError: If no position meets the target within 1 %.
    """
    if points < 2:
        raise ValueError(f'Invalid points {points}: use at least 2.')
    costs = measure_costs(model)
    check_target(target, costs.unit)
    hits = None if answers.labels is None else answers.hits[..., 0]
    if answers.scores is None:
        curve = cascade_curve(answers, costs, points, hits)
        chosen = None if target is None else _cascade_setting(answers, costs, target, hits)
    else:
        curve = budget_curve(answers.scores, costs, points, hits)
        chosen = None
        if target is not None:
            chosen = setting(answers.scores, costs, find_cost_weight(answers.scores, costs, target), hits)
    return Budget(costs.unit, len(answers), curve, chosen, target)


def cascade_curve(
        answers: Answers,
        costs: Costs,
        points: int,
        hits: torch.Tensor | None,
) -> tuple[Setting, ...]:
    """What a cascade's dial can do.

    Args:
        answers: Of the cascade.
        costs: Of its candidates.
        points: Costs, evenly spaced, that positions are looked for at; there may be fewer positions.
        hits: Whether each image is classified correctly at each candidate, (N, M) booleans, if that is known.

    Returns:
        The positions, from the most expensive to the cheapest.
    """
    curve = {}
    for cost in torch.linspace(max(costs.backbone), min(costs.backbone), points).tolist():
        try:
            one = _cascade_setting(answers, costs, cost, hits)
        except ValueError:  # out of reach: the curve shows what is not
            continue
        curve[one.thresholds] = one
    return tuple(sorted(curve.values(), key=lambda one: -one.cost))


def _cascade_setting(answers: Answers, costs: Costs, target: float, hits: torch.Tensor | None) -> Setting:
    """The position of a cascade's dial that meets a target."""
    sure, classes = answers.probabilities[:, :, 0], answers.classes[:, :, 0]
    likely = likelihood(answers.classes, answers.probabilities)
    one = choose_thresholds(sure, likely, costs.backbone, target)
    where = stop(one.thresholds, sure)[:, None]

    def per_cent(holds: torch.Tensor) -> float:
        return 100 * float(holds.gather(1, where).double().mean())

    top1 = None if hits is None else per_cent(hits)
    return Setting(0.0, one.cost, one.shares, top1, one.thresholds, per_cent(classes == classes[:, :1]))
