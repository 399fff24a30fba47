"""Results: the JSON of ``timm-drnet validate``, read back for a model that it belongs to."""

import math
from dataclasses import dataclass
from typing import Any

from ..core.drnet import DRNet
from ..cost.flops import cost_table
from .validation import Accuracy, RandomScore, ResolutionScore, Score, Validation


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
                _read_validation(report), str(report['checkpoint'] or report['model']), str(report['split']),
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
                ('stage', found.stage, model.args.stage)):
            if theirs != ours:
                raise ValueError(f'measured on another model: {what} {theirs} and not {ours}')
        if not all(math.isclose(row.held.gflops, flops) for row, flops in zip(found.resolutions, wanted, strict=True)):
            theirs = ', '.join(f'{row.held.gflops:.4f}' for row in found.resolutions)
            ours = ', '.join(f'{flops:.4f}' for flops in wanted)
            raise ValueError(f'measured on another model: GFLOPs {theirs} and not {ours}')


def _read_validation(report: Any) -> Validation:
    def number(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f'Invalid number {value!r}.')
        return value

    def accuracy(values: Any) -> Accuracy:
        return Accuracy(number(values['top1']), number(values['top5']))

    def score(values: Any) -> Score:
        return Score(*(number(values[key]) for key in ('top1', 'top5', 'gflops', 'fraction')))

    return Validation(
        images=int(number(report['images'])),
        stage=str(report['stage']),
        num_classes=int(number(report['num_classes'])),
        k=int(number(report['k'])),
        dynamic=score(report['dynamic']),
        resolutions=tuple(
            ResolutionScore(
                int(number(row['resolution'])), int(number(row['images'])), number(row['share']),
                score(row['routed']) if row['routed'] else None, score(row['held']))
            for row in report['resolutions']),
        random=RandomScore(
            tuple(map(score, report['random']['draws'])), score(report['random']['mean']),
            accuracy(report['random']['std'])),
    )
