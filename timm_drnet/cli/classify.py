"""``timm-drnet classify``: any number of images into Parquet files, by several processes or machines."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
from typing import Any

from ..bulk.progress import counted
from ..bulk.report import BulkReport
from ..bulk.run import classify_bulk
from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..deploy.export import ExportError
from .common import check_labels, load_model, read_labels
from .output import UserError, show, tell

_NAMED = 10  # unreadable images named on the terminal


def run(args: argparse.Namespace) -> int:
    """Classify, and tell what the output holds."""
    labels = read_labels(args.labels) if args.labels else None
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
    check_labels(args.labels, labels, model)
    try:
        # Ray prints there, line by line, that a worker died and that its work is given again; one line below says it.
        with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere):
            report = classify_bulk(
                model, args.inputs, args.output, labels, args.topk, args.image_column, args.batch_size, args.shard_size,
                args.workers, args.num_gpus, args.decoders, args.address, progress=True, columns=args.columns,
                engine=args.engine, reducing_gap=args.reducing_gap)
    except OSError as error:
        raise UserError(f'{error.filename}: {error.strerror}' if error.filename else str(error)) from error
    except (ExportError, ImportError, ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    if report.skipped_shards:
        tell('classify', f'skipped {report.skipped_shards:,} of {counted(report.shards, "shard")}: already there')
    if report.replaced_workers:
        tell('classify', f'replaced {counted(report.replaced_workers, "worker")} that died')
    if args.json:
        print(json.dumps(_as_json(args.model, report), indent=2))
    else:
        show(*_summary(args.model, model, report))
    return _tell_unreadable(report)


def _as_json(name: str, report: BulkReport) -> dict[str, Any]:
    return {'model': name, **dataclasses.asdict(report), 'folder': str(report.folder)}


def _summary(name: str, model: DRNet, report: BulkReport) -> list[str]:
    readable = report.images - report.unreadable
    lines = [f'{name}: {counted(report.images, "image")} in {counted(report.shards, "shard")}, {report.folder}']
    if readable:
        largest = cost_table(model)[0].backbone_flops / 1e9 * readable
        shares = ', '.join(f'{100 * n / readable:.1f} % at {r} px' for r, n in report.counts.items())
        lines.append(
            f'{shares}; {report.gflops / readable:.4f} GFLOPs per image, {100 * report.gflops / largest:.1f} % of the'
            f" plain backbone's at {model.resolutions[0]} px")
    if report.new_images:
        lines.append(
            f'{counted(report.new_images, "image")} classified now in {report.seconds:.1f} s, of which the start took'
            f' {report.seconds - report.working_seconds:.1f} s: {report.new_images / report.working_seconds:.1f} images'
            ' per second after it')
    return lines


def _tell_unreadable(report: BulkReport) -> int:
    """Name unreadable images; returns the exit code."""
    if not report.unreadable:
        return 0
    for path, row, reason in itertools.islice(report.errors(), _NAMED):
        place = path if row is None else f'{path}, row {row}'
        tell('classify', f'{place}: {reason}')
    if report.unreadable > _NAMED:
        tell('classify', f'... and {report.unreadable - _NAMED:,} more')
    tell('classify', f'{report.unreadable:,} of {report.images:,} images are unreadable; the column error says why')
    return 1
