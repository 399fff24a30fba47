"""The arguments of a DRNet, in one place for the model, the registry, the Hub and the commands."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

PREDICTOR_SIZES = {'residual': 128, 'inverted_residual': 64}
"""The kinds of predictor and the side in pixels at which each sees the image (sections 4.2 and 4.4)."""

_CHOICES = {
    'router': ('predictor', 'cascade'), 'predictor': tuple(PREDICTOR_SIZES), 'stage': ('joint', 'pretrain'),
    'joint_resolutions': ('drawn', 'all'), 'predictor_loss': ('expected', 'utility'),
    'resolution_aware_norm': (True, False),
}


@dataclass(frozen=True)
class DRNetArgs:
    """What distinguishes one DRNet of a backbone from another; a ValueError tells what is out of range."""

    resolutions: tuple[int, ...] = (224, 168, 112)
    """Candidate sides in pixels, largest first."""
    router: str = 'predictor'
    """What makes the choice: the paper's ``predictor``, or a ``cascade``, which has none."""
    thresholds: tuple[float | None, ...] = ()
    """Of a cascade: the confidence with which an image stops at each candidate but the largest, in the order of the
    resolutions; None for a candidate that is left out. Those not given are 0.8."""
    predictor: str = 'residual'
    """Kind of resolution predictor, see `create_predictor`."""
    predictor_size: int = 0
    """Side in pixels at which the predictor sees the image; 0 stands for its usual one, 128 or 64."""
    stage: str = 'joint'
    """``joint`` trains backbone and predictor; ``pretrain`` the backbone, at all resolutions, without the predictor."""
    alpha: float | None = None
    """Target for the average cost of the backbone, in GFLOPs, or milliseconds if the cost is in them (Eq. 7)."""
    eta: float = 0.2
    """Weight of the FLOPs loss (Eq. 8)."""
    tau: float = 1.0
    """Temperature of the Gumbel-softmax (Eq. 11)."""
    resolution_aware_norm: bool = True
    """Whether each resolution has norms of its own; False is the paper's ablation."""
    cost: str | tuple[float, ...] = 'flops'
    """What resolutions are weighed by: ``flops``; ``latency``, measured; or milliseconds, the predictor's last."""
    cost_weight: float = 0.0
    """Position of a predictor's dial; 0 is the choice as trained."""
    joint_resolutions: str = 'drawn'
    """At which resolutions the joint stage trains on an image: the one that is ``drawn`` for it, or ``all``."""
    predictor_loss: str = 'expected'
    """What a predictor learns from where all resolutions are known: the ``expected`` loss of its choice, or the
    ``utility`` of each, as `utility_targets` tells it from the losses and alpha, at the temperature tau."""
    distill: float = 0.0
    """Weight of the ensemble of all resolutions as a teacher of each, where an image trains at all."""
    distill_topdown: float = 0.0
    """Weight of each larger resolution as a teacher of every smaller one, where an image trains at all."""

    def __post_init__(self) -> None:
        """Check the arguments, and bring them into one form."""
        sides = tuple(self.resolutions) if isinstance(self.resolutions, Sequence) else ()
        if not sides or not all(_is_int(r) and r > 0 for r in sides) or list(sides) != sorted(set(sides), reverse=True):
            _refuse('resolutions', self.resolutions, 'different sides in pixels, largest first')
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                _refuse(name, getattr(self, name), f'one of {", ".join(map(repr, choices))}')
        size = self.predictor_size or PREDICTOR_SIZES[self.predictor]
        for name, valid, remedy in (
                ('predictor_size', _is_int(size) and size >= 32, 'a whole number of pixels, at least 32'),
                ('alpha', self.alpha is None or (_is_finite(self.alpha) and self.alpha > 0),
                 'the target average in GFLOPs (milliseconds if the cost is in them), or None for no target'),
                *((name, _is_finite(value) and value >= 0, 'a weight, which must not be negative') for name, value in (
                    ('eta', self.eta), ('distill', self.distill), ('distill_topdown', self.distill_topdown))),
                ('tau', _is_finite(self.tau) and self.tau > 0, 'a temperature, which must be positive'),
                ('cost_weight', _is_finite(self.cost_weight), 'a finite number, 0 for the choice as trained'),
                ('predictor_loss', self.predictor_loss == 'expected' or self.joint_resolutions == 'all',
                 "'expected', or 'utility' with joint_resolutions='all', which tells of every resolution")):
            if not valid:
                _refuse(name, getattr(self, name), remedy)
        rungs = len(sides) - 1 if self.router == 'cascade' else 0
        given = (0.8,) * rungs if self.thresholds in ((), []) else self.thresholds
        thresholds = tuple(given) if isinstance(given, Iterable) else (given,)
        if len(thresholds) != rungs or not all(t is None or _is_finite(t) for t in thresholds):
            _refuse('thresholds', self.thresholds, f'{rungs} numbers or None, one for each smaller rung of a cascade')
        form = {'resolutions': sides, 'predictor_size': size, 'thresholds': thresholds}
        for name, value in {**form, 'cost': self._checked_cost(len(sides))}.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def _checked_cost(self, candidates: int) -> str | tuple[float, ...]:
        if self.cost in ('flops', 'latency'):
            return self.cost
        numbers: tuple[Any, ...] = tuple(self.cost) if isinstance(self.cost, Iterable) else ()
        if len(numbers) != candidates + 1 or not all(_is_finite(c) and c >= 0 for c in numbers) or 0 in numbers[:-1]:
            _refuse('cost', self.cost, (
                f"'flops', 'latency', or {candidates + 1} numbers, the milliseconds of the backbone at each of the"
                f' {candidates} resolutions and those of the predictor'))
        return tuple(map(float, numbers))

    @property
    def uses_predictor(self) -> bool:
        """Whether a predictor chooses."""
        return self.router == 'predictor' and self.stage == 'joint'

    @property
    def trains_at_all(self) -> bool:
        """Whether an image trains at every resolution."""
        return self.stage == 'pretrain' or self.joint_resolutions == 'all' or self.router == 'cascade'


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _refuse(name: str, value: Any, remedy: str) -> NoReturn:
    raise ValueError(f'Invalid {name} {value!r}: use {remedy}.')
