"""``timm-drnet export``: a folder that runs without PyTorch."""

import argparse
import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any

from ..cost.flops import cost_table
from ..data.pixels import printable
from ..deploy.export import FORMATS, ExportError, check_target, export_model
from .common import Subparsers, UserError, add_model_arguments, load_model, read_labels


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    parser = commands.add_parser(
        'export', help='write a folder that runs with ONNX Runtime, without PyTorch',
        description='Write a folder with the predictor and each branch as ONNX, a manifest that describes them, and'
                    ' onnx_runner.py, which needs only ONNX Runtime, NumPy and Pillow to run them. Needs'
                    ' pip install "timm-drnet[onnx]".')
    add_model_arguments(parser, positional=True)
    add = parser.add_argument
    add('out', metavar='OUT', help='the folder to write, which must not exist or be empty')
    add('--checkpoint', metavar='FILE', help='trained weights, instead of the registered ones')
    add('--labels', metavar='FILE', help='names of the classes, one per line')
    add('--format', choices=FORMATS, default='onnx',
        help='torch: programs of torch.export instead, for timm_drnet.ExportedDRNet (%(default)s)')
    add('--opset', metavar='N', type=int, help="version of ONNX's operators (the one that PyTorch prefers)")
    add('--json', action='store_true', help='print the manifest')
    return parser


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
    except OSError as error:
        raise UserError(f'{args.out}: {error.strerror or error}; name another folder') from error
    print(json.dumps(manifest, indent=2) if args.json else _summary(args.out, manifest))
    return 0


def _summary(out: str, manifest: dict[str, Any]) -> str:
    files = manifest['files']
    written = [file for file in (files['predictor'], *files['branches']) if file]
    width = max(len(file['name']) for file in written)
    lines = [printable(f'{manifest["model"]} in {out}')]
    lines += [f'  {file["name"]:<{width}}{file["side"]:>5} px{file["size"] / 1e6:>9.1f} MB' for file in written]
    total = sum(file['size'] for file in written)
    lines.append(f'{total / 1e6:.1f} MB: each branch has convolutions of its own, with its norms folded in')
    if manifest['stage'] == 'pretrain':
        lines.append(f'pretrain stage: there is no predictor, every image runs at {manifest["resolutions"][0]} px')
    if manifest['runtime'] == 'onnx':
        lines.append(printable(f'try it: python {os.path.join(out, "onnx_runner.py")} IMAGE'))
    return '\n'.join(lines)
