"""``timm-drnet classify``: any number of images into Parquet files, by several processes or machines."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
from typing import Any

from ..bulk.report import BulkReport
from ..bulk.run import classify_bulk
from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..data.pixels import printable
from .common import Subparsers, UserError, add_model_arguments, load_model, read_labels, tell

_NAMED = 10  # unreadable images named on the terminal


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    parser = commands.add_parser(
        'classify', help='classify any number of images into Parquet files, on Ray',
        description='Classify any number of images into a folder of Parquet files, by several processes or machines, on'
                    ' Ray Data. After an interruption the same command makes what is missing. Each image has a row,'
                    ' unreadable ones with their reason; if there are such, the exit code is 1.')
    add_model_arguments(parser, positional=True)
    add = parser.add_argument
    add('--input', metavar='PATH', nargs='+', required=True, dest='inputs',
        help='folders of images or of Parquet files, Parquet files, quoted patterns such as "photos/**/*.jpg", and'
             ' addresses of such, for example s3://bucket/photos')
    add('--output', metavar='FOLDER', required=True, help='the folder to write, or to complete')
    add('--image-column', metavar='NAME', default='image', help='column of Parquet files with the images (%(default)s)')
    add('--columns', metavar='NAME', nargs='*',
        help='columns of Parquet files to carry over into the output; none with --columns alone (all but the images)')
    add('--checkpoint', metavar='FILE', help='trained weights, instead of the registered ones')
    add('--labels', metavar='FILE', help='names of the classes, one per line')
    add('--topk', metavar='K', type=int, default=1, help='labels per image (%(default)s)')
    add('-b', '--batch-size', metavar='N', type=int, default=32, help='images in a batch (%(default)s)')
    add('--shard-size', metavar='N', type=int, default=10_000, help='images in a file of the output (%(default)s)')
    add('-j', '--workers', metavar='N', type=int,
        help='processes that classify (one for each core, or for each accelerator)')
    add('--num-gpus', metavar='N', type=float, help='accelerators of each worker, such as 0.5 (1, if there are any)')
    add('--decoders', metavar='N', type=int,
        help='processes that only decode images (with accelerators: as many as there are cores left)')
    add('--address', metavar='ADDRESS', help='of a Ray cluster to join, such as auto (a Ray on this machine alone)')
    add('--json', action='store_true', help='print JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    """Classify, and tell what the output holds."""
    _check(args)
    labels = read_labels(args.labels) if args.labels else None
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
    if labels is not None and len(labels) != model.num_classes:
        raise UserError(
            f'--labels {args.labels}: {len(labels)} lines for the {model.num_classes} classes of {args.model!r};'
            ' give one line for each class')
    try:
        # Ray prints there, line by line, that a worker died and that its work is given again; one line below says it.
        with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
            report = classify_bulk(
                model, args.inputs, args.output, labels, args.topk, args.image_column, args.batch_size, args.shard_size,
                args.workers, args.num_gpus, args.decoders, args.address, progress=True, columns=args.columns)
    except OSError as error:
        raise UserError(f'{error.filename}: {error.strerror}' if error.filename else str(error)) from error
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    if report.skipped_shards:
        tell('classify', f'skipped {report.skipped_shards} of {report.shards} shards, which were there')
    if report.replaced_workers:
        tell('classify', f'{report.replaced_workers} workers died and were replaced')
    print(json.dumps(_as_json(args.model, report), indent=2) if args.json else _table(args.model, model, report))
    return _tell_unreadable(report)


def _check(args: argparse.Namespace) -> None:
    """Refuse what would only fail later."""
    for option, value, least in (
            ('--topk', args.topk, 1), ('--batch-size', args.batch_size, 1), ('--shard-size', args.shard_size, 1),
            ('--workers', args.workers, 1), ('--num-gpus', args.num_gpus, 0), ('--decoders', args.decoders, 0),
            ('--num-classes', args.num_classes, 1)):
        if value is not None and value < least:
            raise UserError(f'{option} {value}: use at least {least}')


def _as_json(name: str, report: BulkReport) -> dict[str, Any]:
    return {'model': name, **dataclasses.asdict(report), 'folder': str(report.folder)}


def _table(name: str, model: DRNet, report: BulkReport) -> str:
    readable = report.images - report.unreadable
    lines = [printable(f'{name}: {report.images:,} images in {report.shards:,} shards, {report.folder}')]
    if readable:
        largest = cost_table(model)[0].backbone_flops / 1e9 * readable
        shares = ', '.join(f'{100 * n / readable:.1f} % at {r} px' for r, n in report.counts.items())
        lines.append(
            f'{shares}; {report.gflops / readable:.4f} GFLOPs per image, {100 * report.gflops / largest:.1f} % of the'
            f" plain backbone's at {model.resolutions[0]} px")
    if report.new_images:
        lines.append(
            f'{report.new_images:,} images classified now in {report.seconds:.1f} s, of which the start took'
            f' {report.seconds - report.working_seconds:.1f} s: {report.new_images / report.working_seconds:.1f} images'
            ' per second after it')
    return '\n'.join(lines)


def _tell_unreadable(report: BulkReport) -> int:
    """Name unreadable images; returns the exit code."""
    if not report.unreadable:
        return 0
    for path, row, reason in itertools.islice(report.errors(), _NAMED):
        place = path if row is None else f'{path}, row {row}'
        tell('classify', f'{place}: {reason}')
    if report.unreadable > _NAMED:
        tell('classify', f'... and {report.unreadable - _NAMED} more')
    tell('classify', f'{report.unreadable} of {report.images} images are unreadable; the column error says why')
    return 1
