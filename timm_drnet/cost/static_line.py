"""The static line: what a model gives without a router, held at one resolution or dealt out between two by lot."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy at a cost."""

    gflops: float
    """Average per image in GFLOPs, everything paid for."""
    top1: float
    """Per cent of the images classified correctly."""
    name: str = ''
    """Written beside the point, for example ``160 px``."""


def static_line(held: Sequence[CurvePoint]) -> tuple[CurvePoint, ...]:
    """The upper hull of a model held at each of its resolutions, up to the most accurate.

    Args:
        held: Cost and accuracy at each resolution.

    Returns:
        The corners of the line, the cheapest first.
    """
    corners: list[CurvePoint] = []
    for point in sorted(held, key=lambda one: (one.gflops, -one.top1)):
        if corners and point.top1 <= corners[-1].top1:
            continue  # no dearer point that is worse is worth its price
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-2], point):
            corners.pop()
        corners.append(point)
    return tuple(corners)


def static_accuracy(costs: torch.Tensor, held: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Accuracy of the static line at a cost: of all ways to deal images to resolutions for no more, the best.

    That is one resolution, or two with just that average.

    Args:
        costs: Of each resolution, (M,).
        held: Accuracy at each, (R, M), for R static lines.
        at: A cost for each line, (R,); below the cheapest resolution, that counts.

    Returns:
        The accuracies, (R,).
    """
    at = at.clamp(min=float(costs.min()))
    best = torch.full_like(at, -torch.inf)
    for a, cheap in enumerate(costs.tolist()):
        best = torch.where(at >= cheap, best.maximum(held[:, a]), best)
        for b, dear in enumerate(costs.tolist()):
            if cheap < dear:
                part = (at - cheap) / (dear - cheap)
                mixed = held[:, a] + part * (held[:, b] - held[:, a])
                best = torch.where((part >= 0) & (part <= 1), best.maximum(mixed), best)
    return best


def _slope(one: CurvePoint, other: CurvePoint) -> float:
    return (other.top1 - one.top1) / (other.gflops - one.gflops)
