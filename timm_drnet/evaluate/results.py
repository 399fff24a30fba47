"""Results: the JSON of ``timm-drnet validate``, read back for a model that it belongs to."""

import math
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..core.drnet import DRNet
from ..cost.flops import cost_table
from .validation import Validation


@dataclass(frozen=True)
class Results:
    """What ``timm-drnet validate`` measured, and how."""

    validation: Validation
    """The measurement."""
    measured: str
    """The checkpoint or model it was measured on, as the user gave it."""
    split: str
    """Split of the data set."""
    limit: int | None
    """Number of images that it was limited to."""
    crop_pct: float
    """Central part of the images that was used."""
    interpolation: str
    """How the images were resized."""
    amp: bool
    """Whether it ran under autocast to bfloat16."""
    unreadable: int
    """Images that could not be read."""

    @classmethod
    def from_report(cls, report: Any, model: DRNet) -> 'Results':
        """Take the JSON of ``timm-drnet validate``, if it belongs to a model.

        Args:
            report: The JSON.
            model: The model.

        Returns:
            The results.

        Raises:
            ValueError: If it is something else, or was measured on another kind of model.
        """
        try:
            results = cls(
                _read(Validation, report), str(report['checkpoint'] or report['model']), str(report['split']),
                None if report['limit'] is None else int(report['limit']), float(report['crop_pct']),
                str(report['interpolation']), bool(report['amp']), len(report['unreadable']))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError('not the JSON of timm-drnet validate') from error
        results._check_model(model)
        return results

    def _check_model(self, model: DRNet) -> None:
        found = self.validation
        wanted = [row.backbone_flops / 1e9 for row in cost_table(model)]
        for what, theirs, ours in (
                ('classes', found.num_classes, model.num_classes),
                ('resolutions', tuple(row.resolution for row in found.resolutions), model.resolutions),
                ('stage', found.stage, model.args.stage),
                ('router', found.router, model.args.router)):
            if theirs != ours:
                raise ValueError(f'measured on another model: {what} {theirs} and not {ours}')
        if not all(math.isclose(row.held.gflops, flops) for row, flops in zip(found.resolutions, wanted, strict=True)):
            theirs = ', '.join(f'{row.held.gflops:.4f}' for row in found.resolutions)
            ours = ', '.join(f'{flops:.4f}' for flops in wanted)
            raise ValueError(f'measured on another model: GFLOPs {theirs} and not {ours}')


def _read(kind: Any, value: Any) -> Any:
    """A value of a dataclass, or of what its fields are made of, from what JSON made of it."""
    if is_dataclass(kind):
        make: Any = kind
        return make(**{name: _read(hint, value[name]) for name, hint in get_type_hints(kind).items()})
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise TypeError(f'Invalid list {value!r}.')
        return tuple(_read(get_args(kind)[0], one) for one in value)
    if get_origin(kind) is UnionType:  # of the kind and None
        return None if value is None else _read(get_args(kind)[0], value)
    right = isinstance(value, str) if kind is str else (
        isinstance(value, int if kind is int else int | float) and not isinstance(value, bool) and math.isfinite(value))
    if not right:
        raise TypeError(f'Invalid {kind.__name__} {value!r}.')
    return kind(value)
