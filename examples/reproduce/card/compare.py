"""Routers against what anyone gets without one, from the answers that the rows left.

Every number is of validation images; thresholds and dials were set on images held out for it. Where a line mixes two
resolutions by lot, an image counts with the probability that it is answered correctly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from timm_drnet.cascade.climb import paid_by_stop
from timm_drnet.cost.costs import Costs
from timm_drnet.cost.dial import find_cost_weight
from timm_drnet.cost.thresholds import choose_thresholds, likelihood, stop


@dataclass(frozen=True, eq=False)
class Answers:
    """What one row, trained with one seed, says of images at each of R resolutions."""

    hits: torch.Tensor
    """Whether it is right, (N, R) float64."""
    sure: torch.Tensor
    """Its largest probability, (N, R)."""
    likely: torch.Tensor
    """The probability that the largest resolution gives to that answer, (N, R)."""

    def largest(self, count: int) -> 'Answers':
        """At so many of the largest resolutions."""
        return Answers(self.hits[:, :count], self.sure[:, :count], self.likely[:, :count])


@dataclass(frozen=True, eq=False)
class Routed:
    """A router at one cost: one seed, N validation images."""

    hits: torch.Tensor
    """Whether each image is answered correctly, (N,) float64."""
    cost: float
    """Average in GFLOPs, everything paid for."""
    shares: tuple[float, ...]
    """Of the images answered at each resolution, largest first."""


def read_answers(path: Path, part: str, count_agreement: bool = False) -> Answers:
    """Read what a row left of ``val`` or ``dial``.

    Args:
        path: The file.
        part: ``val`` or ``dial``.
        count_agreement: An answer is as likely as it is the largest resolution's own, 0 or 1.
    """
    with np.load(path) as arrays:
        classes = torch.from_numpy(arrays[f'{part}_classes'].astype(np.int64))
        probabilities = torch.from_numpy(arrays[f'{part}_log_p'].astype(np.float64)).exp()
        labels = torch.from_numpy(arrays[f'{part}_labels'].astype(np.int64))
    hits = (classes[..., 0] == labels[:, None]).double()
    agrees = (classes[..., 0] == classes[:, :1, 0]).double()
    return Answers(hits, probabilities[..., 0], agrees if count_agreement else likelihood(classes, probabilities))


def read_scores(path: Path, part: str) -> torch.Tensor:
    """Read a predictor's scores, (N, M)."""
    with np.load(path) as arrays:
        return torch.from_numpy(arrays[f'{part}_scores'])


def cascade(dial: Answers, val: Answers, costs: Sequence[float], target: float) -> Routed | None:
    """A cascade whose thresholds were set for an average cost, without labels; None where it cannot cost that."""
    try:
        setting = choose_thresholds(dial.sure, dial.likely, costs, target)
    except ValueError:
        return None
    return _routed(stop(setting.thresholds, val.sure), val, paid_by_stop(setting.thresholds, costs))


def predicted(
        dial: torch.Tensor,
        val: torch.Tensor,
        answers: Answers,
        costs: Costs,
        target: float | None,
) -> Routed | None:
    """A predictor, as trained or with its dial set for an average cost; None where it cannot cost that.

    Args:
        dial: Its scores of the images to set the dial on, (D, M).
        val: Of the validation images, (N, M).
        answers: The backbone's of these.
        costs: Of the candidates and the predictor.
        target: Average cost in GFLOPs, or None for the choice as trained.
    """
    weight = 0.0
    if target is not None:
        try:
            weight = find_cost_weight(dial, costs, target)
        except ValueError:
            return None
    where = (val.double() - weight * torch.tensor(costs.relative, dtype=torch.float64)).argmax(dim=1)
    return _routed(where, answers, [cost + costs.predictor for cost in costs.backbone])


def _routed(where: torch.Tensor, answers: Answers, paid: Sequence[float]) -> Routed:
    counts = torch.bincount(where, minlength=len(paid)).tolist()
    shares = tuple(n / len(where) for n in counts)
    cost = sum(s * c for s, c in zip(shares, paid, strict=True))
    return Routed(answers.hits.gather(1, where[:, None])[:, 0], cost, shares)


def lots(routed: Routed, answers: Answers) -> torch.Tensor:
    """The same shares dealt out by lot, nothing paid for a router: probability of being right, (N,)."""
    return answers.hits[:, :len(routed.shares)] @ torch.tensor(routed.shares, dtype=torch.float64)


def line(hits: torch.Tensor, costs: Sequence[float], at: float) -> torch.Tensor:
    """The best mixture by lot of one or two resolutions that costs no more: probability of being right, (N,).

    Args:
        hits: Of one network at each resolution, or of a network of its own for each, (N, R).
        costs: Of each.
        at: Average cost in GFLOPs.
    """
    best = hits[:, min(range(len(costs)), key=lambda j: costs[j])]
    for a, cheap in enumerate(costs):
        for b, dear in enumerate(costs):
            if cheap <= at:
                part = min(1.0, (at - cheap) / (dear - cheap)) if dear > cheap else 0.0
                mixed = hits[:, a] + part * (hits[:, b] - hits[:, a])
                best = mixed if mixed.mean() > best.mean() else best
    return best


def oracle(answers: Answers, costs: Sequence[float], at: float) -> float:
    """Accuracy in per cent of a router that knows what is right, at an average cost: the cheapest right one first."""
    cheapest = min(costs)
    right = answers.hits > 0
    cost = torch.tensor(costs, dtype=torch.float64)
    least = torch.where(right, cost, torch.inf).amin(dim=1)
    extra = (least[least.isfinite()] - cheapest).sort().values
    affordable = (extra.cumsum(0) <= (at - cheapest) * len(right)).sum()
    return 100 * float(affordable) / len(right)


@dataclass(frozen=True)
class Difference:
    """Between two ways of answering the same images, in points of accuracy."""

    seeds: tuple[float, ...]
    """Of each seed."""
    low: float
    """95 % interval of their mean over images, which were drawn; the seeds are given."""
    high: float
    """The same."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.seeds))


def difference(above: Sequence[torch.Tensor], below: Sequence[torch.Tensor]) -> Difference:
    """Compare image by image.

    Args:
        above: Probability of being right, (N,) for each seed.
        below: The same.
    """
    each = torch.stack([a - b for a, b in zip(above, below, strict=True)])  # (seeds, N)
    over_images = each.mean(dim=0)
    error = 1.96 * float(over_images.std()) / len(over_images) ** 0.5
    mean = float(over_images.mean())
    return Difference(tuple(100 * float(d) for d in each.mean(dim=1)), 100 * (mean - error), 100 * (mean + error))
