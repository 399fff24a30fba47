"""Calibration: whether what calls itself 80 % probable comes true 80 % of the time (Guo et al. 2017)."""

from dataclasses import dataclass

import torch

BINS = 10
"""All of one width."""


@dataclass(frozen=True)
class CalibrationBin:
    """Events whose probability is above ``low``, up to ``high``."""

    low: float
    """Lower end of the bin; the first bin has 0 as well."""
    high: float
    """Upper end of the bin."""
    count: int
    """Events in it."""
    probability: float | None
    """Average probability; None without events."""
    frequency: float | None
    """Fraction of the events that came true; None without events."""


@dataclass(frozen=True)
class Calibration:
    """Probabilities against what came true."""

    ece: float
    """Expected calibration error, between 0 and 1: how far frequency and probability are apart, on average."""
    bins: tuple[CalibrationBin, ...]
    """From the least to the most probable."""


def calibrate(probabilities: torch.Tensor, came_true: torch.Tensor) -> Calibration:
    """Sort events into bins by their probability, and see how many of each came true.

    Args:
        probabilities: Between 0 and 1, (N,) float64.
        came_true: (N,) booleans.

    Returns:
        The bins, and the expected calibration error.
    """
    edges = torch.arange(1, BINS, dtype=torch.float64) / BINS
    index = torch.bucketize(probabilities, edges)  # an edge belongs to the bin below it, as in Guo et al.
    bins, error = [], 0.0
    for i in range(BINS):
        mine = index == i
        n = int(mine.sum())
        if n:
            probability, frequency = float(probabilities[mine].mean()), float(came_true[mine].double().mean())
            error += n / len(probabilities) * abs(frequency - probability)  # Guo et al., Eq. 3
            bins.append(CalibrationBin(i / BINS, (i + 1) / BINS, n, probability, frequency))
        else:
            bins.append(CalibrationBin(i / BINS, (i + 1) / BINS, 0, None, None))
    return Calibration(error, tuple(bins))
