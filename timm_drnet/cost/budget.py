"""The dial: one number that trades cost against accuracy after training, with the model as it is.

The paper chooses argmax(log p_j) and trains one model for each budget. Here the choice is
argmax(log p_j - w * C_j / C_max), with a cost weight w: 0 is the paper, more is cheaper, less than 0 more expensive.
Images whose resolution the predictor is least sure of are the first to move. Which w meets a budget is read off the
predictor's scores for some images; labels are not needed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..cascade.climb import confidence
from ..cascade.dial import choose_thresholds, measure_setting, stop
from ..core.drnet import DRNet
from ..deploy.plain_view import plain_view
from .costs import Costs, measure_costs, set_cost_weight

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
    do not pay, such that its answers agree as often as can be with those of the largest resolution. Nothing is trained,
    and training is not affected. The position goes where the model goes: to the Hub, to ``deploy()`` and into exports.

    Args:
        model: A cascade, or a DRNet in the joint stage; changed in place.
        target: Average cost of an image, predictor included, in GFLOPs, or in milliseconds where the model's ``cost``
            is in milliseconds. None for the choice as trained, w = 0.
        batches: Images like those to come, (B, C, S, S), some hundreds or more, without labels, or pairs of images and
            labels, (B,); with labels, the result says what the accuracy becomes.

    Returns:
        What the dial does on these images; None without a target.

    Raises:
        ValueError: If no position meets the target within 1 %, or there are no images. The model is as it was.
    """
    if target is None:
        turn_to(model, Setting(0.0, 0.0, (), None))
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


@torch.inference_mode()
def collect_scores(
        model: DRNet,
        batches: Iterable[torch.Tensor | Sequence[torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run the predictor, and with labels every resolution as well.

    Args:
        model: A DRNet in the joint stage, on the device to use. It is put in eval mode for it.
        batches: Images, (B, C, S, S), or pairs of images and labels, (B,) integers, on any device.

    Returns:
        The predictor's scores, (N, M), and whether each image is classified correctly at each resolution, (N, M)
        booleans, or None without labels; both on the CPU.

    Raises:
        ValueError: If there is no image, the model's predictor is not in use, or its scores are not finite.
    """
    if not model.args.uses_predictor:
        raise ValueError(
            "The model is of the pretrain stage and its predictor is not in use: create it with stage='joint'.")
    weight = next(model.parameters())
    scores, hits = [], []
    view: Any = plain_view(model)  # in eval mode, whatever the mode of the model and of its parts
    for batch in batches:
        images, target = (batch, None) if isinstance(batch, torch.Tensor) else (batch[0], batch[1])
        x = images.to(weight.device, weight.dtype)
        scores.append(view.predictor_scores(x).float().cpu())
        if target is not None:
            target = target.to(weight.device)
            right = [view.forward_at(x, j).argmax(dim=1) == target for j in range(len(model.resolutions))]
            hits.append(torch.stack(right, dim=1).cpu())
    if not scores:
        raise ValueError('There are no images to read the dial off.')
    joined = torch.cat(scores)
    if not joined.isfinite().all():
        raise ValueError('The predictor gives scores that are not finite: the weights of the model are damaged.')
    if hits and sum(map(len, hits)) != len(joined):
        raise ValueError('Some batches have labels and others have none: give all of them, or none.')
    return joined, torch.cat(hits) if hits else None


def find_budget(
        model: DRNet,
        target: float | None,
        batches: Iterable[torch.Tensor | Sequence[torch.Tensor]],
        points: int = 15,
) -> Budget:
    """Find the position of the dial that meets a target on some images; the model is not changed.

    Args:
        model: As for `collect_scores`.
        target: Average cost of an image, predictor included, in GFLOPs, or milliseconds where the model's ``cost`` is
            in milliseconds. None for the curve alone.
        batches: As for `collect_scores`. With labels, the accuracy of each position is given.
        points: Positions in the curve.

    Returns:
        The position and the curve.

    Raises:
        ValueError: As `collect_scores`, and if no position meets the target within 1 %.
    """
    if points < 2:
        raise ValueError(f'Invalid points {points}: use at least 2.')
    costs = measure_costs(model)
    _check_target(target, costs)
    if model.args.router == 'cascade':
        return cascade_budget(collect_answers(model, batches), costs, target, points)
    scores, hits = collect_scores(model, batches)
    chosen = None
    if target is not None:
        chosen = setting(scores, costs, find_cost_weight(scores, costs, target), hits)
    return Budget(costs.unit, len(scores), budget_curve(scores, costs, points, hits), chosen, target)


def _check_target(target: float | None, costs: Costs) -> None:
    if target is not None and not (target > 0 and math.isfinite(target)):
        raise ValueError(f'Invalid target {target}: use an average cost per image in {costs.unit}.')


@dataclass(frozen=True, eq=False)
class CascadeAnswers:
    """What every rung of a cascade says about N images at M candidates, the largest first; on the CPU."""

    sure: torch.Tensor
    """Confidence, (N, M)."""
    classes: torch.Tensor
    """The most probable class, (N, M) integers."""
    labels: torch.Tensor | None
    """The right class, (N,) integers; None if it is not known."""


@torch.inference_mode()
def collect_answers(model: DRNet, batches: Iterable[torch.Tensor | Sequence[torch.Tensor]]) -> CascadeAnswers:
    """Run every candidate of a cascade on some images.

    Args:
        model: A cascade with a classifier, on the device to use. It is put in eval mode for it.
        batches: As for `collect_scores`.

    Returns:
        The answers.

    Raises:
        ValueError: If there is no image or no classifier, or the logits are not finite.
    """
    if not model.num_classes:
        raise ValueError('The model has no classifier (num_classes=0), so its answers have no confidence.')
    weight = next(model.parameters())
    view: Any = plain_view(model)
    sure, classes, labels = [], [], []
    for batch in batches:
        images, target = (batch, None) if isinstance(batch, torch.Tensor) else (batch[0], batch[1])
        x = images.to(weight.device, weight.dtype)
        logits = [view.forward_at(x, j) for j in range(len(model.resolutions))]
        sure.append(torch.stack([confidence(each) for each in logits], dim=1).cpu())
        classes.append(torch.stack([each.argmax(dim=1) for each in logits], dim=1).cpu())
        labels += [] if target is None else [target.cpu()]
    if not sure:
        raise ValueError('There are no images to read the dial off.')
    joined = CascadeAnswers(torch.cat(sure), torch.cat(classes), torch.cat(labels) if labels else None)
    if not joined.sure.isfinite().all():
        raise ValueError('The model gives logits that are not finite: its weights are damaged.')
    if joined.labels is not None and len(joined.labels) != len(joined.sure):
        raise ValueError('Some batches have labels and others have none: give all of them, or none.')
    return joined


def cascade_budget(answers: CascadeAnswers, costs: Costs, target: float | None, points: int = 15) -> Budget:
    """Find the thresholds of a cascade that meet a target.

    Args:
        answers: Of the cascade.
        costs: Of its candidates.
        target: Average cost of an image, every rung included; None for the curve alone.
        points: Positions in the curve.

    Returns:
        The thresholds and the curve.

    Raises:
        ValueError: If no thresholds meet the target within 1 %.
    """
    agrees = answers.classes == answers.classes[:, :1]

    def setting(thresholds: tuple[float | None, ...]) -> Setting:
        one = measure_setting(thresholds, answers.sure, agrees, costs.backbone)
        top1 = None
        if answers.labels is not None:
            hits = answers.classes == answers.labels[:, None]
            top1 = 100 * float(hits.gather(1, stop(thresholds, answers.sure)[:, None]).double().mean())
        return Setting(0.0, one.cost, one.shares, top1, thresholds, one.agreement)

    def nearest(cost: float) -> Setting:
        return setting(choose_thresholds(answers.sure, agrees, costs.backbone, cost).thresholds)

    curve = {}
    for cost in torch.linspace(max(costs.backbone), min(costs.backbone), points).tolist():
        try:
            one = nearest(cost)
        except ValueError:  # out of reach: the curve shows what is not
            continue
        curve[one.thresholds] = one
    chosen = None if target is None else nearest(target)
    ordered = tuple(sorted(curve.values(), key=lambda one: -one.cost))
    return Budget(costs.unit, len(answers.sure), ordered, chosen, target)


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
    _check_target(target, costs)
    above, below = _around(scores, costs, _one_on_each_step(scores, costs), target)
    best = min(above, below, key=lambda one: abs(one.cost - target))
    if abs(best.cost - target) > TOLERANCE * target:
        most, least = (extreme(costs.backbone) + costs.predictor for extreme in (max, min))
        raise ValueError(
            f'Invalid target {target:g} {costs.unit}: on these {len(scores)} images the nearest averages are'
            f' {above.cost:.4g} and {below.cost:.4g}, and the resolutions cost from {most:.4g} to {least:.4g}. Use one'
            ' of the averages, or more images.')
    as_trained = setting(scores, costs, 0.0)
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
