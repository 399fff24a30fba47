"""What a change to a smaller branch is worth, on held-out photographs.

A branch may answer more often as the largest does, and yet stop a cascade at the wrong images: there a change is judged
by the answers of the whole, at the target. A gain counts if it is larger than its standard error.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Trial:
    """Something that was tried on the branch of one candidate resolution."""

    resolution: int
    """Side in pixels."""
    change: str
    """What was done, for example ``norms tuned``."""
    agreement: float
    """Per cent of the held-out images that the branch answers as the largest does."""
    gain: float
    """Of the whole cascade at the target, or of the branch where a predictor chooses, in points of agreement."""
    error: float
    """Standard error of the gain, paired by image."""
    kept: bool
    """Whether the change stays."""


def kept_answers(agrees: torch.Tensor, sure: torch.Tensor, going: float | None) -> torch.Tensor:
    """Which images end with the largest branch's answer, if the least certain ones go on to it.

    Args:
        agrees: Whether the smaller branch answers as the largest does, (N,) booleans.
        sure: Its confidence, (N,).
        going: The share of the images that goes on; None if the branch answers all of them.

    Returns:
        Whether each image does, (N,) booleans.
    """
    if going is None:
        return agrees
    on = round(len(sure) * min(max(going, 0.0), 1.0))
    kept = agrees.clone()
    kept[sure.argsort()[:on]] = True
    return kept


def compare(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float]:
    """The gain of a change and its standard error, in points.

    Args:
        before: Which images were answered as by the largest branch, (N,) booleans.
        after: The same with the change.

    Returns:
        The gain and its standard error, both in points.
    """
    difference = after.double() - before.double()
    return 100 * float(difference.mean()), 100 * float(difference.std()) / math.sqrt(len(difference))
