"""What the commands that measure on labelled images share: what they tell about the data and the router."""

import argparse
import textwrap
from pathlib import Path
from typing import Any

from ..cost.verdict import Verdict
from ..data.labelled import LabelledImages
from .output import tell

_NAMED = 10  # unreadable files named on the terminal


def describe_source(args: argparse.Namespace, images: LabelledImages) -> str:
    """A short name of the data."""
    if args.dataset:
        return f'{args.dataset}, {args.split}'
    return '/'.join(Path(images.dataset.reader.root).resolve().parts[-2:])


def measured_how(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Model, data and preparation, for a report in JSON."""
    return {
        'model': args.model,
        'checkpoint': args.checkpoint,
        'data': args.data,
        'dataset': args.dataset,
        'split': args.split,
        'limit': args.limit,
        'img_size': config['input_size'][-1],
        'crop_pct': config['crop_pct'],
        'interpolation': config['interpolation'],
        'reducing_gap': args.reducing_gap,
        'amp': args.amp,
        'seed': args.seed,
    }


def tell_unreadable(args: argparse.Namespace, images: LabelledImages, done: str) -> int:
    """Name the files that were left out.

    Args:
        args: Of the command.
        images: All of which were read.
        done: What was not done with them.

    Returns:
        The exit code of the command.
    """
    if not images.unreadable:
        return 0
    for name, reason in images.unreadable[:_NAMED]:
        tell(args.command, f'skipped {name}: {reason}')
    if len(images.unreadable) > _NAMED:
        tell(args.command, f'... and {len(images.unreadable) - _NAMED} more')
    tell(args.command, f'{len(images.unreadable)} of {len(images)} images are unreadable and were not {done}')
    return 1


def verdict_lines(verdict: Verdict | None) -> list[str]:
    """Lines below a table: whether the router pays, and what must not be overlooked.

    Args:
        verdict: What was found, if there is a router.

    Returns:
        The lines.
    """
    if verdict is None:
        return []
    texts = [verdict.sentence, *(f'warning: {warning}' for warning in verdict.warnings)]
    return [line for text in texts for line in textwrap.wrap(text, 100, subsequent_indent='  ')]
