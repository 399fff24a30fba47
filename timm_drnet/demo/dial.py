"""The dial of a model as one slider, from the fewest FLOPs to the most.

`timm_drnet.evaluate.budgets.set_budget` needs photographs to find what meets a budget; a slider has to be there before
the first one. So its positions are what the model itself compares. For a cascade that is the threshold: the confidence
in per cent with which an image stops at the smallest rung. For a predictor it is how sure it has to be that the
smallest resolution will do, rather than the largest; at 50 the choice is as trained. What a position costs depends on
the images, and is told for the visitor's own.
"""

import copy
import math
from dataclasses import replace

from ..cost.costs import measure_costs
from ..cost.flops import cost_table, paid
from ..model import DRNet

_NEVER = 2.0
"""A threshold that no confidence reaches."""
_LEAST = 1e-4
"""How near to impossible and to certain probabilities are taken."""


class Dial:
    """The slider of one model.

    Args:
        model: A cascade, or a DRNet in the joint stage. It does not change: other settings are copies that share its
            weights, so every visitor can have one.

    Raises:
        ValueError: If the model chooses nothing.
    """

    def __init__(self, model: DRNet) -> None:
        self.is_threshold = model.args.router == 'cascade'
        """Whether the position is the confidence with which an image stops."""
        if not self.is_threshold and not model.args.uses_predictor:
            raise ValueError('The model is of the pretrain stage and chooses nothing: give one of the joint stage.')
        if len(model.resolutions) < 2:
            raise ValueError(
                f'The model has one resolution, {model.resolutions[0]} px, and chooses nothing: give one of several.')
        self._model = model
        self._backbone = [row.backbone_flops for row in cost_table(model)]
        self._predictor = cost_table(model)[0].predictor_flops
        self._relative = () if self.is_threshold else measure_costs(model).relative
        self._rungs = model.args.thresholds
        if all(t is None for t in self._rungs):  # only the largest runs: the slider brings the smallest in
            self._rungs = (*self._rungs[:-1], _NEVER)
        self.own = round(100 * self._own())
        """The position, in per cent, of the model's own setting."""
        self.stops = tuple(t is not None for t in (0.0, *self._rungs)) if self.is_threshold else (
            (True,) * len(model.resolutions))
        """Whether an image can stop at each resolution, largest first."""

    def turn(self, position: float) -> DRNet:
        """The model at another setting.

        Args:
            position: In per cent; 0 for the fewest FLOPs, 100 for the most.

        Returns:
            A DRNet that shares all weights; the very model at its own position.
        """
        if position == self.own:
            return self._model
        turned, share = copy.copy(self._model), position / 100
        if self.is_threshold:
            turned.args = replace(turned.args, thresholds=self._thresholds(share))
            return turned
        # At the ends the price outweighs whatever the predictor says.
        odds = math.copysign(1e4, 0.5 - share) if not 0 < share < 1 else math.log(1 / share - 1)
        turned.args = replace(turned.args, cost_weight=odds / self._span())
        turned.prices = tuple(turned.args.cost_weight * c for c in self._relative)
        return turned

    def paid(self, position: float) -> dict[int, int]:
        """FLOPs of an image that stops at each resolution, largest first, everything paid for.

        Args:
            position: In per cent.
        """
        turned = self.turn(position)
        return dict(zip(turned.resolutions, paid(turned.args, self._backbone, self._predictor), strict=True))

    def _own(self) -> float:
        if not self.is_threshold:
            return _from_odds(math.exp(-self._model.args.cost_weight * self._span()))
        smallest = next(t for t in reversed(self._rungs) if t is not None)
        return min(max(smallest, 0.0), 1.0)

    def _span(self) -> float:
        """How far the costs of the largest and the smallest resolution lie apart."""
        return self._relative[0] - self._relative[-1]

    def _thresholds(self, share: float) -> tuple[float | None, ...]:
        """All thresholds moved by the same odds as that of the smallest rung."""
        if not 0 < share < 1:
            return tuple(None if t is None else 0.0 if share <= 0 else _NEVER for t in self._rungs)
        factor = _odds(share) / _odds(self._own())
        return tuple(None if t is None else _from_odds(factor * _odds(t)) for t in self._rungs)


def _odds(probability: float) -> float:
    probability = min(max(probability, _LEAST), 1 - _LEAST)
    return probability / (1 - probability)


def _from_odds(odds: float) -> float:
    return odds / (1 + odds)
