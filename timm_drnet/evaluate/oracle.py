"""The oracle: the best that a router could do. It knows the labels.

For each image it takes the smallest resolution at which the classification is right, as Figure 1 of the paper has it,
and the smallest of all for an image that is right at none, as no size helps. No router for this backbone is right more
often, and none that is right as often costs less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..cost.flops import CostRow


@dataclass(frozen=True)
class Oracle:
    """What the best choices would give."""

    top1: float
    """Per cent of the images that are classified correctly at one resolution or another."""
    gflops: float
    """Average per image in GFLOPs (multiply-accumulates), without a router."""
    fraction: float
    """The same as a fraction of the backbone's at the largest resolution."""
    gflops_with_router: float
    """Average per image, the predictor or the smaller rungs of a cascade included."""
    fraction_with_router: float
    """The same as a fraction of the backbone's at the largest resolution."""
    images: tuple[int, ...]
    """Images by the smallest resolution at which they are right, largest first."""
    none_right: int
    """Images that are right at no resolution."""


def smallest_right(right: torch.Tensor) -> torch.Tensor:
    """The smallest resolution at which each image is classified correctly.

    Args:
        right: Whether it is at each resolution, (N, M) booleans, largest first.

    Returns:
        Indices of the resolutions, (N,) int64; M where an image is right at none.
    """
    number = right.shape[1]
    last = torch.where(right, torch.arange(number), -1).amax(dim=1)
    return torch.where(last < 0, number, last)


def find_oracle(rows: Sequence[CostRow], needed: torch.Tensor) -> Oracle:
    """Count what the best choices would give.

    Args:
        rows: Costs of the resolutions.
        needed: As `smallest_right` gives it.

    Returns:
        The oracle.
    """
    images = len(needed)
    *counts, none_right = torch.bincount(needed, minlength=len(rows) + 1).tolist()
    spent = [*counts[:-1], counts[-1] + none_right]  # the smallest where none is right
    backbone, total = (
        sum(n * flops for n, flops in zip(spent, costs, strict=True)) / images
        for costs in ([row.backbone_flops for row in rows], [row.total_flops for row in rows]))
    largest = rows[0].backbone_flops
    return Oracle(
        100 * (images - none_right) / images, backbone / 1e9, backbone / largest, total / 1e9, total / largest,
        tuple(counts), none_right)
