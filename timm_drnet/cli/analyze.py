"""``timm-drnet analyze``: a page that holds a model's choices of resolutions against the best ones."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from ..analysis.choices import Analysis, analyze, check_analyzable
from ..analysis.report import write_report
from ..core.drnet import DRNet
from ..data.datasets import open_labelled_images
from ..data.labelled import LabelledImages, make_loader
from ..data.labels import class_labels
from ..data.output_folder import check_output_folder
from ..data.pixels import printable
from ..data.reading import data_config
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
        'analyze', help='write a page about the choices of resolutions on labelled images',
        description='Write a folder with a page that holds the choices of resolutions on labelled images against the'
                    ' best ones: accuracy and cost, too small and needlessly large choices, calibration, classes,'
                    ' thumbnails. images.csv, classes.csv and summary.json hold its numbers. The exit code is 1 if an'
                    ' image was unreadable.')
    add_model_arguments(parser, positional=True)
    add = parser.add_argument
    add('data', metavar='DATA', help='a folder per class, or a folder with such a folder for the split')
    add('out', metavar='OUT', help='the folder to write, which must not exist or be empty')
    add_data_arguments(parser)
    add('--json', action='store_true', help='print the summary as JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    """Analyze, write, print where, and tell what could not be read."""
    check_data_arguments(args)
    try:
        check_output_folder(args.out)
        device = pick_device(args.device)
        model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
        check_analyzable(model)
        model = model.to(device)
        images = open_labelled_images(
            args.data, model.num_classes, model.in_chans, args.dataset, args.split, args.class_map, args.limit)
        config = data_config(model, args.crop_pct)
        loader = make_loader(images, config, args.batch_size, args.workers, device)
        with tqdm(loader, desc='analyze', unit='batch', leave=False, disable=None) as progress:
            analysis = analyze(model, images.batches(progress), args.amp, args.seed)
        cascade = model.args.router == 'cascade'
        dial = {'thresholds': model.args.thresholds} if cascade else {'cost_weight': model.args.cost_weight}
        settings = {**measured_how(args, config), **dial}
        summary = _write(args, analysis, images, _class_names(model, images), settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f'--batch-size {args.batch_size}: out of memory on {device}; use a smaller one') from error
    print(json.dumps(summary, indent=2) if args.json else _table(args, analysis))
    return tell_unreadable(args, images, 'analyzed')


def _write(
        args: argparse.Namespace,
        analysis: Analysis,
        images: LabelledImages,
        class_names: Sequence[str],
        settings: dict[str, Any],
) -> dict[str, Any]:
    try:
        return write_report(
            analysis, images, args.out, args.model, describe_source(args, images), class_names, settings)
    except OSError as error:
        raise UserError(f'{args.out}: {error.strerror or error}; name another folder') from error


def _class_names(model: DRNet, images: LabelledImages) -> Sequence[str]:
    """The model's names of the classes, or those of the dataset if the model just counts them."""
    labels = class_labels(model)
    if labels != tuple(map(str, range(model.num_classes))):
        return labels
    reader = getattr(images.dataset, 'reader', images.dataset)
    theirs = getattr(reader, 'class_to_idx', None) or {}
    names = {index: str(name) for name, index in theirs.items()}
    return [names.get(index, label) for index, label in enumerate(labels)]


def _table(args: argparse.Namespace, analysis: Analysis) -> str:
    validation, choices = analysis.validation, analysis.choices
    oracle, verdict = validation.oracle, validation.verdict
    largest = validation.resolutions[0]

    def line(name: str, top1: float, gflops: float, fraction: float) -> str:
        return f'{name:<31}{top1:>10.2f} %{gflops:>12.4f}{100 * fraction:>12.1f} %'

    lines = [
        f'{printable(args.model)}: {validation.images:,} images, {validation.num_classes:,} classes',
        f'{"":<31}{"top-1":>12}{"GFLOPs":>12}{"of largest":>14}',
        line('dynamic', validation.dynamic.top1, validation.dynamic.gflops, validation.dynamic.fraction),
        line(f'held at {largest.resolution} px', largest.held.top1, largest.held.gflops, largest.held.fraction),
        line('lots at the same shares', validation.random.mean.top1, validation.random.mean.gflops,
             validation.random.mean.fraction),
        line('oracle, with the router', oracle.top1, oracle.gflops_with_router, oracle.fraction_with_router),
        line('oracle', oracle.top1, oracle.gflops, oracle.fraction),
    ]
    if verdict is not None:
        dynamic = validation.dynamic
        lines.insert(4, line(
            'static line at the same cost', verdict.static.top1, dynamic.gflops, dynamic.fraction))
    for name, number in (
            ('too small', choices.outcomes.too_small), ('needlessly large', choices.outcomes.needlessly_large),
            ('right at no resolution', oracle.none_right)):
        lines.append(f'{name:<31}{100 * number / validation.images:>10.2f} %')
    lines.append(f'{"agreement with the oracle":<31}{100 * choices.agreement:>10.2f} %, by chance'
                 f' {100 * choices.agreement_by_chance:.2f} %')
    lines.append(f'{"calibration error":<31}{100 * analysis.calibration.ece:>10.2f} %')
    lines += tell_verdict(verdict)
    lines.append(f'look at it: {printable(os.path.join(args.out, "index.html"))}')
    return '\n'.join(lines)
