"""Whether a router pays, and what a model gives at every budget: parts of an analysis that need not be there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """The model as it is used, on the same images as another way to choose."""

    versus: str
    """The other way, for example ``the static line at the same cost``."""
    top1: float
    """Per cent of the images that it classifies correctly."""
    difference: float
    """Top-1 of the model less that of the other way, in points."""
    low: float
    """Lower end of the difference's 95 % interval, paired by image."""
    high: float
    """Upper end."""

    @property
    def words(self) -> str:
        """What the interval says."""
        if self.low > 0:
            return 'the model is better'
        return 'the model is worse' if self.high < 0 else 'no difference that these images can show'


@dataclass(frozen=True)
class Verdict:
    """Does the router pay?"""

    sentence: str
    """The answer."""
    comparisons: tuple[Comparison, ...]
    """What it rests on."""
    warnings: tuple[str, ...] = ()
    """What a user must not overlook, each in a sentence."""


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy at a cost."""

    gflops: float
    """Average per image in GFLOPs, everything paid for."""
    top1: float
    """Per cent of the images classified correctly."""
    name: str = ''
    """Written beside the point, for example ``160 px``."""


@dataclass(frozen=True)
class Curve:
    """The model at all budgets. Both lines have at least one point, the cheapest first."""

    budgets: tuple[CurvePoint, ...]
    """The model, its dial set to one budget after the other."""
    static: tuple[CurvePoint, ...]
    """The backbone held at the candidates that make up the static line."""
