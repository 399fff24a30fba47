"""``timm-drnet export``: a folder that runs without PyTorch."""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any

from ..cost.flops import cost_table
from ..deploy.export import ExportError, check_target, export_model
from .common import load_model, read_labels
from .output import Column, UserError, show, table


def run(args: argparse.Namespace) -> int:
    """Export, and print what was written."""
    try:
        check_target(args.out, args.format, args.opset)  # before the model is loaded
        labels = read_labels(args.labels) if args.labels else None
        model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's attribute
        with redirect_stdout(sys.stderr):  # some versions of the exporter tell what they do
            manifest = export_model(
                model, args.out, cost_table(model), args.format, args.opset, labels, args.model,
                license=None if args.checkpoint else cfg.get('license'), progress=True)
    except (ExportError, ImportError, ValueError) as error:
        raise UserError(str(error)) from error
    if args.json:
        print(json.dumps(manifest, indent=2))
    else:
        show(*_summary(args.out, manifest))
    return 0


def _summary(out: str, manifest: dict[str, Any]) -> list[str]:
    files = manifest['files']
    written = [file for file in (files['predictor'], *files['branches']) if file]
    lines = [f'{manifest["model"]} in {out}']
    lines += table(
        [Column('file'), Column('images', '.0f', 'px'), Column('size', '.1f', 'MB')],
        [(file['name'], file['side'], file['size'] / 1e6) for file in written])
    total = sum(file['size'] for file in written)
    lines.append(f'{total / 1e6:.1f} MB: each branch has convolutions of its own, with its norms folded in')
    if manifest['router'] == 'cascade':
        stops = zip(manifest['resolutions'][1:], manifest['thresholds'], strict=True)
        rungs = ', '.join(f'{side} px from {threshold:.3f} on' for side, threshold in stops if threshold is not None)
        lines.append(f'cascade: images stop at {rungs or "the largest alone"}')
    elif manifest['stage'] == 'pretrain':
        lines.append(f'pretrain stage: there is no predictor, every image runs at {manifest["resolutions"][0]} px')
    if manifest['runtime'] == 'onnx':
        lines.append(f'try it: python {os.path.join(out, "onnx_runner.py")} IMAGE')
    return lines
