"""``timm-drnet validate``: accuracy and cost on a folder of labelled images."""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..data.datasets import open_labelled_images
from ..data.labelled import LabelledImages, make_loader
from ..data.pixels import printable
from ..data.reading import data_config
from ..evaluate.validation import Accuracy, Score, Validation, validate
from .common import Subparsers, UserError, add_model_arguments, load_model, pick_device
from .labelled_data import (
    add_data_arguments,
    check_data_arguments,
    describe_source,
    measured_how,
    tell_unreadable,
    tell_verdict,
)


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    parser = commands.add_parser(
        'validate', help='measure accuracy and FLOPs on labelled images',
        description='Measure accuracy and FLOPs on labelled images: of the model, of the same model held at each of'
                    ' its resolutions, of the static line that joins these, of lots at the same shares of the'
                    ' resolutions, and of an oracle; and say whether the router pays. The exit code is 1 if an image'
                    ' was unreadable.')
    add_model_arguments(parser, positional=True)
    add = parser.add_argument
    add('data', metavar='DATA', help='a folder per class, or a folder with such a folder for the split')
    add_data_arguments(parser)
    add('--channels-last', action='store_true', help='run in the channels_last memory format')
    add('--json', action='store_true', help='print JSON')
    add('--output', metavar='FILE', help='also write the JSON to a file')
    return parser


def run(args: argparse.Namespace) -> int:
    """Measure, print, and tell what could not be read."""
    _check(args)
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    try:
        images = open_labelled_images(
            args.data, model.num_classes, model.in_chans, args.dataset, args.split, args.class_map, args.limit)
        config = data_config(model, args.crop_pct)
        loader = make_loader(images, config, args.batch_size, args.workers, device)
        with tqdm(loader, desc='validate', unit='batch', leave=False, disable=None) as progress:
            result = validate(model, images.batches(progress), args.amp, args.channels_last, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f'--batch-size {args.batch_size}: out of memory on {device}; use a smaller one') from error

    report = json.dumps(_report(args, config, images, result), indent=2)
    if args.output:
        Path(args.output).write_text(report + '\n', encoding='utf-8')
    print(report if args.json else _table(args.model, describe_source(args, images), result))
    return tell_unreadable(args, images, 'measured')


def _check(args: argparse.Namespace) -> None:
    """Refuse what would only fail later, perhaps after a long measurement."""
    check_data_arguments(args)
    if args.output:
        output = Path(args.output)
        if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
            raise UserError(f'--output {output}: cannot write there; name a file in an existing folder')


def _report(
        args: argparse.Namespace,
        config: dict[str, Any],
        images: LabelledImages,
        result: Validation,
) -> dict[str, Any]:
    return {
        **measured_how(args, config),
        **dataclasses.asdict(result),
        'unreadable': [{'path': name, 'reason': reason} for name, reason in images.unreadable],
    }


def _table(model: str, source: str, result: Validation) -> str:
    def line(name: str, score: Score | None, std: Accuracy | None = None) -> str:
        if score is None:
            return f'{name:<38}{"-":>8}'
        cells = [f'{score.top1:8.2f} %', f'{score.top5:8.2f} %'] if std is None else [
            f'{score.top1:.2f} ± {std.top1:.2f} %', f'{score.top5:.2f} ± {std.top5:.2f} %']
        return f'{name:<31}{cells[0]:>17}{cells[1]:>17}{score.gflops:>12.4f}{100 * score.fraction:>12.1f} %'

    def top1_only(name: str, top1: float, gflops: float, fraction: float) -> str:
        return f'{name:<31}{top1:15.2f} %{"":>17}{gflops:>12.4f}{100 * fraction:>12.1f} %'

    largest = result.resolutions[0].resolution
    width = len(str(largest))
    lines = [printable(f'{model} on {source}: {result.images:,} images, {result.num_classes:,} classes')]
    if not result.routed:
        lines.append(f'pretrain stage: the resolution predictor is not in use, every image runs at {largest} px')
    lines.append(f'{"":<31}{"top-1":>17}{f"top-{result.k}":>17}{"GFLOPs":>12}{"of largest":>14}')
    lines.append(line('dynamic', result.dynamic))
    for row in result.resolutions if result.routed else ():  # otherwise these rows would repeat the one above
        lines.append(line(f'  {row.resolution:>{width}} px, {100 * row.share:5.1f} % of images', row.routed))
    for row in result.resolutions:
        lines.append(line(f'held at {row.resolution:>{width}} px', row.held))
    oracle, verdict = result.oracle, result.verdict
    if verdict is not None:
        lines.append(top1_only('static line at the same cost', verdict.static.top1, result.dynamic.gflops,
                               result.dynamic.fraction))
        lines.append(line('lots at the same shares', result.random.mean, result.random.std))
    if result.routed:
        lines.append(top1_only('oracle', oracle.top1, oracle.gflops_with_router, oracle.fraction_with_router))
    return '\n'.join(lines + tell_verdict(verdict))
