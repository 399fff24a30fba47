"""The verdict: whether a router pays, on images whose labels are known.

Whatever a router costs, two ways to spend as much need none: the static line, and lots at the router's own shares. A
router that is no better than lots knows nothing of the images; one that is better, but not than the static line, knows
too little for its price.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .static_line import static_accuracy

COLLAPSED = 0.95
"""Share of the images at one resolution above which hardly anything is routed."""

_RESAMPLES, _CHUNK = 10_000, 500


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
    static: Comparison
    """With the static line at the same cost."""
    lots: Comparison
    """With lots at the same shares of the resolutions."""
    warnings: tuple[str, ...] = ()
    """What a user must not overlook, each in a sentence."""


def judge(
        choices: torch.Tensor,
        right: torch.Tensor,
        held: Sequence[float],
        paid: Sequence[float],
        resolutions: Sequence[int],
        seed: int = 0,
        measure: str = 'top-1',
) -> Verdict:
    """Say whether a router pays.

    The intervals are of the paired bootstrap: images are drawn anew with all of their answers, and the cost, the shares
    and the static line are those of the drawn images.

    Args:
        choices: Index of the resolution that the router gave to each image, (N,) integers.
        right: Whether each image is classified correctly at each resolution, (N, M) booleans.
        held: Cost of the model held at each resolution, without a router.
        paid: All that is paid for an image that ends at each resolution.
        resolutions: Sides in pixels.
        seed: Of the bootstrap.
        measure: What being right is called.

    Returns:
        The verdict.
    """
    routed = right.gather(1, choices[:, None])
    chosen = torch.nn.functional.one_hot(choices, len(resolutions)).bool()
    # Images of one kind are alike in all that counts, so that drawing N of the images is drawing from a few kinds.
    kinds, counts = torch.cat([routed, chosen, right], dim=1).unique(dim=0, return_counts=True)
    kinds, counts = kinds.double(), counts.double()
    costs = torch.tensor(held, dtype=torch.float64), torch.tensor(paid, dtype=torch.float64)
    others, differences = _compare((counts / len(choices))[None] @ kinds, *costs)
    generator = np.random.default_rng(seed)
    shares = counts.numpy() / len(choices)
    numbers = (generator.multinomial(len(choices), shares, _CHUNK) for _ in range(_RESAMPLES // _CHUNK))
    drawn = torch.cat([_compare(torch.from_numpy(some).double() / len(choices) @ kinds, *costs)[1] for some in numbers])
    low, high = np.percentile(drawn.numpy(), [2.5, 97.5], axis=0).tolist()
    static, lots = (
        Comparison(f'{way} at the same {same}', *values) for (way, same), *values in zip(
            (('the static line', 'cost'), ('lots', 'shares')),
            others[0].tolist(), differences[0].tolist(), low, high, strict=True))
    used = (torch.bincount(choices, minlength=len(resolutions)) / len(choices)).tolist()
    answer = _answer(static, lots, used, measure)
    return Verdict(answer, static, lots, routing_warnings(resolutions, used, lots))


def routing_warnings(
        resolutions: Sequence[int],
        shares: Sequence[float],
        lots: Comparison | None = None,
) -> tuple[str, ...]:
    """What must not be overlooked of a router's choices.

    Args:
        resolutions: Sides in pixels.
        shares: Of the images at each, between 0 and 1.
        lots: The comparison with lots, if it was made.

    Returns:
        Sentences, none if all is well.
    """
    found = []
    most, side = max(zip(shares, resolutions, strict=True))
    if most > COLLAPSED:
        found.append(f'{100 * most:.1f} % of the images take {side} px: hardly anything is routed.')
    if lots is not None and lots.low <= 0 and most < 1:  # with one resolution for all, lots are the same
        found.append(f'The router is no better than {lots.versus}, which need none.')
    return tuple(found)


def _compare(means: torch.Tensor, held: torch.Tensor, paid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per cent right on the static line and by lots, and what the router is better by; both (R, 2).

    The means, (R, 1 + 2M), are those of what is right as routed, chosen at each resolution and right at each.
    """
    top1, shares, held_top1 = (100 * means[:, :1]), means[:, 1:1 + len(held)], 100 * means[:, 1 + len(held):]
    static = static_accuracy(held, held_top1, shares @ paid)
    lots = (shares * held_top1).sum(dim=1)
    others = torch.stack([static, lots], dim=1)
    return others, top1 - others


def _answer(
        static: Comparison,
        lots: Comparison,
        shares: Sequence[float],
        measure: str,
) -> str:
    if max(shares) == 1:
        return 'The router does not pay: one size for all images needs none.'
    both = f'{measure} differs by {_points(static)} against {static.versus}, and {_points(lots)} against {lots.versus}'
    if lots.low <= 0:
        return f'The router does not pay: {both}.'
    if static.high < 0:
        return f'The router does not pay, though it is better than lots: {both}.'
    if static.low <= 0:
        return f'These images do not show whether the router pays, only that it beats lots: {both}.'
    return f'The router pays in FLOPs: {both}.'


def _points(one: Comparison) -> str:
    return f'{one.difference:+.2f} points (95 % interval {one.low:+.2f} to {one.high:+.2f})'

