"""``timm-drnet budget``: turn the dial of a trained model to an average cost."""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..core.drnet import DRNet
from ..cost.costs import measure_costs
from ..cost.latency import latency_table
from ..data.datasets import open_labelled_images
from ..data.files import find_images
from ..data.labelled import DataError, make_loader
from ..data.reading import Unreadable, data_config, image_loader, read_batches
from ..evaluate.budgets import Budget, find_budget, turn_to
from .budget_table import budget_table
from .common import check_model_folder, load_model, pick_device, save_model
from .output import UserError, show, tell


def run(args: argparse.Namespace) -> int:
    """Find the position, print the curve, save the model."""
    _check(args)
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs).to(device)
    output = check_model_folder('--output', args.output, model) if args.output else None
    target = _choose_cost(args, model)
    unreadable: list[Unreadable] = []
    batches, no_labels = _open(args, model, device, unreadable)
    try:
        budget = find_budget(model, target, batches, args.points)
    except ValueError as error:
        raise UserError(f'{_option(args)}{args.data}: {error}') from error
    if budget.chosen is not None:
        turn_to(model, budget.chosen)
    if args.json:
        print(json.dumps({
            'model': args.model, 'checkpoint': args.checkpoint, 'data': args.data, 'cost': model.args.cost,
            'resolutions': model.resolutions, **dataclasses.asdict(budget),
            'unreadable': [{'path': str(one.path), 'reason': one.reason} for one in unreadable]}, indent=2))
    else:
        show(*_table(args, model, budget, no_labels))
    for one in unreadable:
        tell('budget', f'skipped {one.path}: {one.reason}')
    if output is not None:
        save_model(model.cpu(), output)
    return 1 if unreadable else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would only fail later."""
    if args.output:
        if _option(args) == '':
            raise UserError(f'--output {args.output}: without a target the dial stays where it is; give --target-gflops'
                            ' or --target-ms')
        check_model_folder('--output', args.output)


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


def _table(args: argparse.Namespace, model: DRNet, budget: Budget, no_labels: str | None) -> list[str]:
    costs = measure_costs(model)
    cascade = model.args.router == 'cascade'
    lines = [f'{args.model} on {budget.images:,} images of {args.data}', *budget_table(model, budget)]
    if budget.chosen is not None:
        where = args.model if args.output is None else f'local-dir:{args.output}'
        position = (
            f', thresholds={budget.chosen.thresholds}' if cascade else f', cost_weight={budget.chosen.cost_weight:.6g}')
        given = '' if args.output else position
        if given and budget.unit == 'ms':
            given += f', cost=({", ".join(f"{c:.6g}" for c in (*costs.backbone, costs.predictor))})'
        lines.append(f'timm.create_model({where!r}, pretrained=True{given})')
    if no_labels is not None:
        lines.append(f'no accuracy: {no_labels}')
    return lines
