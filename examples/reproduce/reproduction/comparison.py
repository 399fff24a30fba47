"""Numbers over seeds, and whether a difference between two rows is more than their noise."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HELD = 'held'
NOT_DISTINGUISHABLE = 'not distinguishable'
NOT_HELD = 'did not hold'
NOT_MEASURED = 'not measured yet'


@dataclass(frozen=True)
class Sample:
    """One quantity of one row, measured with several seeds."""

    values: tuple[float, ...]
    """One for each seed, in per cent."""
    image_error: float
    """Standard error of a value that comes from the validation images being a sample, averaged over seeds."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float:
        """Standard error of the mean; with a single seed, that of the images alone."""
        return self.image_error if self.std is None else self.std / math.sqrt(len(self.values))


@dataclass(frozen=True)
class Difference:
    """Between two samples."""

    points: float
    """Points of per cent."""
    error: float
    """Pooled standard error."""
    single: bool
    """Whether one of the samples is of a single seed."""

    @property
    def verdict(self) -> str:
        """Whether it is above 0, given the noise."""
        text = HELD if self.points > 0 else NOT_HELD
        if abs(self.points) <= self.error:
            text = NOT_DISTINGUISHABLE
        return f'{text} (one seed)' if self.single else text


def compare(above: Sample, below: Sample) -> Difference:
    """How far one sample lies above another.

    Args:
        above: The one that is claimed to be larger.
        below: The other.

    Returns:
        The difference of the means.
    """
    return Difference(
        above.mean - below.mean, math.hypot(above.error, below.error), min(len(above.values), len(below.values)) == 1)


def sample(results: Sequence[Mapping[str, Any]], quantity: str, use: str = 'dynamic') -> Sample | None:
    """A quantity of a row.

    Args:
        results: Of one row, one for each seed.
        quantity: ``top1`` or ``fraction``.
        use: How the model is used, see `PaperRow`.

    Returns:
        The sample in per cent; None if there are no results.
    """
    if not results:
        return None
    measured = [_measure(result, quantity, use) for result in results]
    return Sample(tuple(value for value, _ in measured), statistics.fmean(error for _, error in measured))


def _measure(result: Mapping[str, Any], quantity: str, use: str) -> tuple[float, float]:
    """A value in per cent, and its standard error over images."""
    report = result['validation']
    if use.startswith('dial-'):
        score = result['dial'][int(use.removeprefix('dial-'))]
        shares = score['shares']
    elif use == 'dynamic':
        score, shares = result, [row['share'] for row in report['resolutions']] if report else []
    elif use == 'shares':
        score, shares = report['random']['mean'], [row['share'] for row in report['resolutions']]
    else:
        held = [row['held'] for row in report['resolutions']]
        score = {key: statistics.fmean(one[key] for one in held) for key in ('top1', 'fraction')}
        shares = [1 / len(held)] * len(held)
    if quantity == 'top1':
        return score['top1'], math.sqrt(score['top1'] * (100 - score['top1']) / result['images'])
    if not report:
        return 100 * score['fraction'], 0.0  # the same for every image
    costs = [100 * row['held']['fraction'] for row in report['resolutions']]
    mean = sum(s * c for s, c in zip(shares, costs, strict=True))
    variance = sum(s * (c - mean) ** 2 for s, c in zip(shares, costs, strict=True))
    return 100 * score['fraction'], math.sqrt(variance / result['images'])
