"""A cascade's dial: thresholds that meet an average cost, read off what its rungs say about some images.

No labels are needed, as the largest candidate stands in for them: an answer is as good as the probability that it gives
to that class. On average that is the accuracy that is to be expected, as far as its probabilities are right. Another
answer where the largest is itself in doubt costs little; that is what counting agreement alone does not see.

Of all settings that meet a target, the one is wanted whose answers are expected to be right most often. With some
hundred images chance decides between those that are nearly as good, at each target anew. So one rung is preferred, the
one that is expected to bring most over all costs that it can have, and other rungs, one or two, have to be better at
the target by more than chance.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..cascade.climb import paid_by_stop
from .static_line import static_accuracy

_STEPS = 20
"""In which the share that stops at the smaller of two rungs is tried."""

_BEYOND = 1.0001
"""A threshold that no confidence reaches."""


@dataclass(frozen=True)
class CascadeSetting:
    """One setting of a cascade's thresholds."""

    thresholds: tuple[float | None, ...]
    """As of a DRNet: one for each candidate but the largest."""
    cost: float
    """Average per image, every rung that ran included, in the unit of the costs."""
    shares: tuple[float, ...]
    """Of the images that stop at each resolution, largest first."""
    expected: float
    """Per cent of the images that are to be expected right."""


def likelihood(classes: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """The probability that the largest candidate gives to the answer of each.

    Args:
        classes: The most probable classes at each candidate, the first k of them, (N, M, k) integers.
        probabilities: Of these classes, (N, M, k).

    Returns:
        (N, M); 0 for an answer that is not among the largest candidate's first k.
    """
    return ((classes[:, :, :1] == classes[:, :1]) * probabilities[:, :1]).sum(dim=2)


def measure_setting(
        thresholds: Sequence[float | None],
        sure: torch.Tensor,
        likely: torch.Tensor,
        costs: Sequence[float],
) -> CascadeSetting:
    """Find out what thresholds do to some images.

    Args:
        thresholds: One for each candidate but the largest.
        sure: Confidence of each image at each candidate, (N, M).
        likely: The `likelihood` of its answer, (N, M).
        costs: Of each candidate, largest first.

    Returns:
        The setting, with its cost, shares and what is expected of it.
    """
    where = stop(thresholds, sure)
    paid = torch.tensor(paid_by_stop(thresholds, costs), dtype=torch.float64)[where]
    counts = torch.bincount(where, minlength=len(costs)).tolist()
    expected = likely.gather(1, where[:, None]).double().mean()
    return CascadeSetting(
        tuple(thresholds), float(paid.mean()), tuple(n / len(sure) for n in counts), 100 * float(expected))


def stop(thresholds: Sequence[float | None], sure: torch.Tensor) -> torch.Tensor:
    """Where images stop, (N,) int64, given their confidence at each candidate, (N, M)."""
    where = torch.zeros(len(sure), dtype=torch.int64)
    for j, threshold in enumerate(thresholds, start=1):  # the smallest comes last and overrides the others
        if threshold is not None:
            where[sure[:, j] >= threshold] = j
    return where


def choose_thresholds(
        sure: torch.Tensor,
        likely: torch.Tensor,
        costs: Sequence[float],
        target: float,
) -> CascadeSetting:
    """Choose rungs and their thresholds for an average cost.

    No rung below the largest, one and two are tried. More rungs have to be better than fewer, and a rung than one that
    is better over all costs, by more than the standard error of the difference, paired by image.

    Args:
        sure: Confidence of each image at each candidate, (N, M).
        likely: The `likelihood` of its answer, (N, M).
        costs: Of each candidate, largest first.
        target: Average cost of an image, in their unit.

    Returns:
        The setting, one of those nearest to the target.

    Raises:
        ValueError: If no setting is within 1 % of the target; it says what can be reached.
    """
    affordable = [  # for no rung, one and two; the plain backbone costs no more
        [one for thresholds in _candidates(number, sure, costs, target)
         if (one := measure_setting(thresholds, sure, likely, costs)).cost <= costs[0]] for number in (0, 1, 2)]
    none, single, pairs = ([one for one in each if abs(one.cost - target) <= 0.01 * target] for each in affordable)
    single.sort(key=lambda one: _area(_rung(one), sure, likely, costs), reverse=True)
    pairs.sort(key=lambda one: (one.expected, -one.cost), reverse=True)
    preferred = [*none, *single, *pairs[:1]]
    if not preferred:
        nearest = [one.cost for each in affordable for one in each]
        raise ValueError(
            f'Invalid target {target:g}: on these {len(sure)} images the cascade can cost from {min(costs):.4g} to'
            f' {costs[0]:.4g}, and the nearest averages that it reaches are {_around(nearest, target)}. Use one of'
            ' those, or more images.')
    return functools.reduce(lambda best, one: one if _is_better(one, best, sure, likely) else best, preferred)


def _candidates(
        number: int,
        sure: torch.Tensor,
        costs: Sequence[float],
        target: float,
) -> Iterator[tuple[float | None, ...]]:
    """Thresholds with a number of rungs below the largest whose cost is as near to the target as can be."""
    images = len(sure)
    for used in itertools.combinations(range(1, len(costs)), number):
        thresholds: list[float | None] = [None] * (len(costs) - 1)
        if number == 0:
            yield tuple(thresholds)
            continue
        largest_used, smallest = used[0], used[-1]
        if number == 1:
            going = (target - costs[smallest]) / costs[0]  # share that goes on
            thresholds[smallest - 1] = _threshold(sure[:, smallest], round(images * (1 - going)))
            yield tuple(thresholds)
            continue
        for step in range(1, _STEPS):
            first = _threshold(sure[:, smallest], round(images * step / _STEPS))
            on = sure[:, smallest] < first
            left = int(on.sum())
            going = (images * (target - costs[smallest]) - left * costs[largest_used]) / costs[0]  # images
            if 0 <= going <= left:
                thresholds[smallest - 1] = first
                thresholds[largest_used - 1] = _threshold(sure[on, largest_used], left - round(going))
                yield tuple(thresholds)


def _threshold(sure: torch.Tensor, number: int) -> float:
    """The confidence that so many images reach, in the middle between two values, so that rounding changes nothing."""
    ordered = sure.double().sort(descending=True).values
    if number <= 0 or not len(ordered):
        return _BEYOND
    if number >= len(ordered):
        return 0.0
    return float((ordered[number - 1] + ordered[number]) / 2)


def _is_better(one: CascadeSetting, other: CascadeSetting, sure: torch.Tensor, likely: torch.Tensor) -> bool:
    """Whether a setting is better than another by more than the standard error that chance alone would have."""
    mine, theirs = (likely.gather(1, stop(each.thresholds, sure)[:, None]).double() for each in (one, other))
    gain = mine - theirs
    return bool(gain.sum() > gain.square().sum().sqrt())  # one image alone is chance


def _rung(setting: CascadeSetting) -> int:
    """The candidate of its only threshold."""
    return next(j for j, threshold in enumerate(setting.thresholds, start=1) if threshold is not None)


def _area(index: int, sure: torch.Tensor, likely: torch.Tensor, costs: Sequence[float]) -> float:
    """Between what a cascade of one rung is expected to bring at all costs up to the largest's, and the static line."""
    images = len(sure)
    relative = torch.tensor(costs, dtype=torch.float64) / costs[0]
    right = likely.double()
    going = right[sure[:, index].argsort(stable=True)]  # the least sure go on first
    gained = torch.cat([going.new_zeros(1), (going[:, 0] - going[:, index]).cumsum(dim=0)]) / images
    cost = relative[index] + torch.arange(images + 1) / images
    within = cost <= 1
    held = right.mean(dim=0)
    line = static_accuracy(relative, held.expand(int(within.sum()), -1), cost[within])
    return float((held[index] + gained[within] - line).sum()) / images


def _around(reached: Sequence[float], target: float) -> str:
    above, below = min((c for c in reached if c >= target), default=None), max(
        (c for c in reached if c < target), default=None)
    return ' and '.join(f'{c:.4g}' for c in (above, below) if c is not None) or 'none'
