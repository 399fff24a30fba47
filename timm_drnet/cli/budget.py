"""``timm-drnet budget``: turn the dial of a trained model to an average cost."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..core.drnet import DRNet
from ..cost.budget import Budget, Setting, find_budget, turn_to
from ..cost.costs import measure_costs
from ..cost.latency import latency_table
from ..data.datasets import open_labelled_images
from ..data.files import find_images
from ..data.labelled import DataError, make_loader
from ..data.pixels import printable
from ..data.reading import Unreadable, data_config, image_loader, read_batches
from ..hub.publishing import save_folder
from .common import Subparsers, UserError, add_model_arguments, check_new_folder, load_model, pick_device, tell


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    parser = commands.add_parser(
        'budget', help='trade accuracy for cost without training',
        description='Find how to turn the dial of a trained model so that images like the given ones cost a given'
                    ' average, and print what every position of the dial comes to. The images need no labels; where'
                    ' they are in a folder per class, the accuracy is printed too. The exit code is 1 if an image was'
                    ' unreadable.')
    add_model_arguments(parser, positional=True)
    add = parser.add_argument
    add('data', metavar='DATA', help='a folder of images, or a folder per class')
    add('--target-gflops', metavar='G', type=float, help='average per image, predictor included')
    add('--target-ms', metavar='T', type=float,
        help='average per image in milliseconds, predictor included, as measured on this device')
    add('--latency-batch-size', metavar='N', type=int, default=8,
        help='batches that --target-ms is measured with (%(default)s)')
    add('--output', metavar='DIR', help='save the model with its dial there, for local-dir:DIR and timm-drnet publish')
    add('--checkpoint', metavar='FILE', help='checkpoint of train.py, or safetensors file, with the weights')
    add('--split', metavar='NAME', default='validation', help='split of a labelled folder (%(default)s)')
    add('--crop-pct', metavar='P', type=float, help="central part of an image to use (the model's own)")
    add('--limit', metavar='N', type=int, help='only the first N images')
    add('--points', metavar='N', type=int, default=15, help='positions of the dial to print (%(default)s)')
    add('-b', '--batch-size', metavar='N', type=int, default=64, help='images in a batch (%(default)s)')
    add('-j', '--workers', metavar='N', type=int, default=min(4, os.cpu_count() or 1),
        help='processes that read labelled images (%(default)s)')
    add('--device', metavar='NAME', help='cpu, cuda, cuda:1, ... (the accelerator, if there is one)')
    add('--json', action='store_true', help='print JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    """Find the position, print the curve, save the model."""
    _check(args)
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs).to(device)
    target = _choose_cost(args, model)
    unreadable: list[Unreadable] = []
    batches, no_labels = _open(args, model, device, unreadable)
    try:
        budget = find_budget(model, target, batches, args.points)
    except ValueError as error:
        raise UserError(f'{_option(args)}{args.data}: {error}') from error
    if budget.chosen is not None:
        turn_to(model, budget.chosen)
    if args.output:
        save_folder(model.cpu(), args.output)
    if args.json:
        print(json.dumps({
            'model': args.model, 'checkpoint': args.checkpoint, 'data': args.data, 'cost': model.args.cost,
            'resolutions': model.resolutions, **dataclasses.asdict(budget),
            'unreadable': [{'path': str(one.path), 'reason': one.reason} for one in unreadable]}, indent=2))
    else:
        print(_table(args, model, budget, no_labels))
    for one in unreadable:
        tell('budget', f'skipped {one.path}: {one.reason}')
    return 1 if unreadable else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would only fail later."""
    for option, value, least in (
            ('--batch-size', args.batch_size, 1), ('--workers', args.workers, 0), ('--limit', args.limit, 1),
            ('--points', args.points, 2), ('--latency-batch-size', args.latency_batch_size, 1)):
        if value is not None and value < least:
            raise UserError(f'{option} {value}: use at least {least}')
    if args.crop_pct is not None and not 0 < args.crop_pct <= 1:
        raise UserError(f'--crop-pct {args.crop_pct}: use a fraction of the image, above 0 and up to 1')
    for option, target in (('--target-gflops', args.target_gflops), ('--target-ms', args.target_ms)):
        if target is not None and not (target > 0 and math.isfinite(target)):
            raise UserError(f'{option} {target}: use an average cost per image, above 0')
    if args.target_gflops is not None and args.target_ms is not None:
        raise UserError(f'--target-ms {args.target_ms} and --target-gflops {args.target_gflops}: use one of them')
    if args.output:
        if _option(args) == '':
            raise UserError(f'--output {args.output}: without a target the dial stays where it is; give --target-gflops'
                            ' or --target-ms')
        check_new_folder('--output', args.output)


def _option(args: argparse.Namespace) -> str:
    for option, target in (('--target-gflops', args.target_gflops), ('--target-ms', args.target_ms)):
        if target is not None:
            return f'{option} {target:g}: '
    return ''


def _choose_cost(args: argparse.Namespace, model: DRNet) -> float | None:
    """Let the model weigh what the target is given in; the target."""
    if args.target_ms is not None:
        # What the model may have been given was measured somewhere else, or is to be measured now.
        rows = latency_table(model, args.latency_batch_size)
        cost = (*(row.backbone_ms for row in rows), rows[0].predictor_ms)
        model.args = dataclasses.replace(model.args, cost=cost)
        return float(args.target_ms)
    if args.target_gflops is not None:
        model.args = dataclasses.replace(model.args, cost='flops')
        return float(args.target_gflops)
    return None


def _open(
        args: argparse.Namespace,
        model: DRNet,
        device: torch.device,
        unreadable: list[Unreadable],
) -> tuple[Iterator[Any], str | None]:
    """Batches with labels if the folders are the model's classes, else without; why there are no labels."""
    try:
        images = open_labelled_images(args.data, model.num_classes, model.in_chans, split=args.split, limit=args.limit)
    except DataError as error:
        if not Path(args.data).exists():
            raise UserError(str(error)) from error
        return _unlabelled(args, model, unreadable), str(error)
    loader = make_loader(images, data_config(model, args.crop_pct), args.batch_size, args.workers, device)

    def labelled() -> Iterator[Any]:
        with tqdm(loader, desc='budget', unit='batch', leave=False, disable=None) as progress:
            yield from images.batches(progress)
        unreadable.extend(Unreadable(Path(name), reason) for name, reason in images.unreadable)

    return labelled(), None


def _unlabelled(args: argparse.Namespace, model: DRNet, unreadable: list[Unreadable]) -> Iterator[torch.Tensor]:
    try:
        paths, load = find_images([args.data]), image_loader(model, args.crop_pct)
    except (OSError, ValueError) as error:
        raise UserError(f'{args.data}: {error}') from error
    with tqdm(paths[:args.limit], desc='budget', unit='image', leave=False, disable=None) as progress:
        for batch in read_batches(progress, load, args.batch_size, unreadable):
            yield torch.stack([image for _, image in batch])


def _table(args: argparse.Namespace, model: DRNet, budget: Budget, no_labels: str | None) -> str:
    costs = measure_costs(model)
    largest = max(costs.backbone)
    sides = ''.join(f'{f"{r} px":>10}' for r in model.resolutions)
    lines = [
        printable(f'{args.model} on {budget.images:,} images of {args.data}'),
        f'{"cost weight":>12}{budget.unit:>11}{"of largest":>12}{sides}{"":>4}{"top-1" if no_labels is None else ""}']

    def line(one: Setting, remark: str = '') -> str:
        shares = ''.join(f'{100 * share:8.1f} %' for share in one.shares)
        top1 = '' if one.top1 is None else f'{one.top1:9.2f} %'
        return f'{one.cost_weight:>12.4f}{one.cost:>11.4f}{100 * one.cost / largest:>10.1f} %{shares}{top1}{remark}'

    lines += [line(one, '  as trained' if one.cost_weight == 0 else '') for one in budget.curve]
    if budget.chosen is not None:
        assert budget.target is not None
        off = 100 * (budget.chosen.cost / budget.target - 1)
        lines += ['', f'for {budget.target:g} {budget.unit}, {off:+.2f} %:', line(budget.chosen)]
        where = args.model if args.output is None else f'local-dir:{args.output}'
        given = '' if args.output else f', cost_weight={budget.chosen.cost_weight:.6g}'
        if given and budget.unit == 'ms':
            given += f', cost=({", ".join(f"{c:.6g}" for c in (*costs.backbone, costs.predictor))})'
        lines.append(f'timm.create_model({where!r}, pretrained=True{given})')
    if no_labels is not None:
        lines.append(printable(f'no accuracy: {no_labels}'))
    return '\n'.join(lines)
