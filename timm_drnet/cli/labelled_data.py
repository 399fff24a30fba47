"""What the commands that measure on labelled images share: arguments, and what they tell about the data."""

import argparse
import os
import textwrap
from pathlib import Path
from typing import Any

from ..cost.verdict import Verdict
from ..data.labelled import LabelledImages
from .common import UserError, tell

_NAMED = 10  # unreadable files named on the terminal


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that the other functions read, but for the data itself.

    Args:
        parser: The parser of a command.
    """
    add = parser.add_argument
    add('--checkpoint', metavar='FILE', help='checkpoint of train.py, or safetensors file, to measure')
    add('--dataset', metavar='NAME', default='', help='another kind of timm dataset, such as torch/cifar10')
    add('--split', metavar='NAME', default='validation', help='split of the dataset (%(default)s)')
    add('--class-map', metavar='FILE', default='', help='label of each class folder, as timm reads it: one name a line')
    add('--limit', metavar='N', type=int, help='only the first N images')
    add('--crop-pct', metavar='P', type=float, help="central part of an image to use (the model's own)")
    add('-b', '--batch-size', metavar='N', type=int, default=64, help='images in a batch (%(default)s)')
    add('-j', '--workers', metavar='N', type=int, default=min(4, os.cpu_count() or 1),
        help='processes that read images (%(default)s)')
    add('--device', metavar='NAME', help='cpu, cuda, cuda:1, ... (the accelerator, if there is one)')
    add('--amp', action='store_true', help='autocast to bfloat16')
    add('--seed', metavar='N', type=int, default=42, help='of the bootstrap (%(default)s)')


def check_data_arguments(args: argparse.Namespace) -> None:
    """Refuse what would only fail later, perhaps after a long measurement.

    Raises:
        UserError: If an argument is out of range.
    """
    for option, value, least in (
            ('--batch-size', args.batch_size, 1), ('--workers', args.workers, 0), ('--limit', args.limit, 1),
            ('--num-classes', args.num_classes, 1)):
        if value is not None and value < least:
            raise UserError(f'{option} {value}: use at least {least}')
    if args.crop_pct is not None and not 0 < args.crop_pct <= 1:
        raise UserError(f'--crop-pct {args.crop_pct}: use a fraction of the image, above 0 and up to 1')


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


def tell_verdict(verdict: Verdict | None) -> list[str]:
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
