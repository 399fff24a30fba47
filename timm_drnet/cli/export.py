"""``timm-drnet export``: a folder that runs without PyTorch."""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any

import torch

from ..cascade.rungs_alone import rungs_alone
from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..data.reading import Unreadable, image_loader, read_some
from ..deploy.export import ExportError, check_target, export_model
from .common import load_model, read_labels
from .output import Column, UserError, show, table, tell

_IMAGES = 400  # of which a quarter is held out: more change little


def run(args: argparse.Namespace) -> int:
    """Export, and print what was written."""
    if bool(args.calibrate) != (args.precision == 'int8'):
        raise UserError('--precision int8 needs images to --calibrate, and --calibrate needs --precision int8')
    unreadable: list[Unreadable] = []
    try:
        check_target(args.out, args.format, args.opset, args.precision)  # before the model is loaded
        labels = read_labels(args.labels) if args.labels else None
        whole = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
        model = rungs_alone(whole)
        images = _images(args.calibrate, model, unreadable) if args.calibrate else None
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's attribute
        with redirect_stdout(sys.stderr):  # some versions of the exporter tell what they do
            manifest = export_model(
                model, args.out, cost_table(model), args.format, args.opset, labels, args.model,
                license=None if args.checkpoint else cfg.get('license'), progress=True, precision=args.precision,
                calibrate=images)
    except (ExportError, ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    if args.json:
        print(json.dumps(manifest, indent=2))
    else:
        show(*_summary(args.out, manifest, sorted({*whole.resolutions} - {*model.resolutions}, reverse=True)))
    for one in unreadable:
        tell('export', f'skipped {one.path}: {one.reason}')
    return 1 if unreadable else 0


def _images(paths: list[str], model: DRNet, unreadable: list[Unreadable]) -> torch.Tensor:
    try:
        return read_some(paths, image_loader(model), _IMAGES, unreadable)
    except OSError as error:
        raise UserError(f'--calibrate {" ".join(paths)}: {error}') from error


def _summary(out: str, manifest: dict[str, Any], left_out: list[int]) -> list[str]:
    files = manifest['files']
    written = [file for file in (files['predictor'], *files['branches']) if file]
    lines = [f'{manifest["model"]} in {out}']
    lines += table(
        [Column('file'), Column('images', '.0f', 'px'), Column('size', '.1f', 'MB')],
        [(file['name'], file['side'], file['size'] / 1e6) for file in written])
    for file in written:
        if file.get('agreement') is not None:
            kept = ', '.join(file['float_operators']) or 'no operator'
            lines.append(
                f'{file["name"]}: the same answer as in float32 for {file["agreement"]:.1%} of'
                f' {manifest["quantization"]["held_out"]} images held out; {kept} in float32')
    total = sum(file['size'] for file in written)
    lines.append(f'{total / 1e6:.1f} MB: each branch has convolutions of its own, with its norms folded in')
    if manifest['router'] == 'cascade':
        stops = zip(manifest['resolutions'][1:], manifest['thresholds'], strict=True)
        rungs = ', '.join(f'{side} px from {threshold:.3f} on' for side, threshold in stops if threshold is not None)
        lines.append(f'cascade: images stop at {rungs or "the largest alone"}')
        if left_out:
            lines.append(f'not exported, as no image stops there: {", ".join(map(str, left_out))} px')
    elif manifest['stage'] == 'pretrain':
        lines.append(f'pretrain stage: there is no predictor, every image runs at {manifest["resolutions"][0]} px')
    if manifest['runtime'] == 'onnx':
        lines.append(f'try it: python {os.path.join(out, "onnx_runner.py")} IMAGE')
    return lines
