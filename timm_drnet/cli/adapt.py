"""``timm-drnet adapt``: make a plain timm CNN dynamic in minutes, without labels."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import timm
import torch

from ..adaptation.adapt import Adaptation, adapt_model, drnet_to_adapt
from ..adaptation.branches import Settings
from ..adaptation.photographs import find_photographs
from ..data.class_folders import read_class_map
from ..data.output_folder import check_output_file
from ..hub.checkpoints import check_finite, count_classes, load_plain_weights
from ..hub.publishing import disown_source
from ..model import DRNet
from .budget_table import budget_table
from .common import check_model_folder, first_line, pick_device, read_checkpoint, read_labels, save_model
from .labelled_data import verdict_lines
from .output import Column, UserError, show, table, tell


def run(args: argparse.Namespace) -> int:
    """Adapt, print what came of it, save the model."""
    output = check_model_folder('--output', args.output)
    state = check_output_file(f'{output}.progress', '--output')
    labels = read_labels(args.labels) if args.labels else None
    device = pick_device(args.device)
    training, weights = (None, None) if args.checkpoint is None else read_checkpoint(args.checkpoint, '--checkpoint')
    model = _drnet(args, weights).to(device)
    if labels is not None and len(labels) != model.num_classes:
        raise UserError(f'--labels {args.labels}: {len(labels)} names for a model of {model.num_classes} classes')
    output = check_model_folder('--output', args.output, model)
    try:
        class_map = read_class_map(args.class_map, '') if args.class_map else None
        settings = Settings(args.target, args.epochs, workers=args.workers, seed=args.seed)
        photographs = find_photographs(
            args.data, args.held_out, args.seed, args.limit, model.num_classes, class_map)
    except (OSError, ValueError) as error:
        raise UserError(f'{" ".join(args.data)}: {first_line(error)}') from error
    try:
        found = adapt_model(model, photographs, settings, state, lambda line: tell('adapt', line))
    except (OSError, ValueError) as error:
        raise UserError(first_line(error)) from error
    unreadable = {str(path): reason for path, reason in photographs.unreadable.items()}
    if args.json:
        print(json.dumps(_report(args, found, unreadable), indent=2))
    else:
        show(*_summary(args, found))
    for name, reason in unreadable.items():
        tell('adapt', f'skipped {name}: {reason}')
    disown_source(model, training)
    save_model(model.cpu(), output, None, labels)
    state.unlink(missing_ok=True)
    return 1 if unreadable else 0


def _drnet(args: argparse.Namespace, weights: dict[str, torch.Tensor] | None) -> DRNet:
    """The DRNet to adapt, with the weights of the backbone."""
    try:
        create = {'pretrained': weights is None, **args.model_kwargs}
        plain: Any = timm.create_model(args.model, num_classes=args.num_classes, **create)
        if weights is not None:
            classes = count_classes(weights, plain)
            if args.num_classes is None and classes not in (None, getattr(plain, 'num_classes', None)):
                plain = timm.create_model(args.model, num_classes=classes, **create)
            load_plain_weights(plain, weights)
        elif args.num_classes not in (None, plain.pretrained_cfg['num_classes']):  # the classifier would be random
            raise UserError(
                f'--num-classes {args.num_classes}: the weights of {args.model!r} are for'
                f' {plain.pretrained_cfg["num_classes"]} classes; give others with --checkpoint')
        check_finite(plain.state_dict())
        return drnet_to_adapt(plain, args.resolutions, args.router, args.seed)
    except UserError:
        raise
    except Exception as error:  # timm's models check no argument, and these come from the command line
        hint = ' Give trained weights with --checkpoint.' if 'No pretrained weights' in str(error) else ''
        raise UserError(f'cannot make {args.model!r} dynamic: {first_line(error)}{hint}') from error


def _report(args: argparse.Namespace, found: Adaptation, unreadable: dict[str, str]) -> dict[str, Any]:
    result = {
        field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name != 'model'}
    return {
        'backbone': args.model, 'data': args.data, 'resolutions': found.model.resolutions, 'torch': torch.__version__,
        **{name: _plain(value) for name, value in result.items()},
        'unreadable': [{'path': name, 'reason': reason} for name, reason in unreadable.items()],
    }


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _summary(args: argparse.Namespace, found: Adaptation) -> list[str]:
    model, chosen = found.model, found.budget.chosen
    assert chosen is not None
    lines = [
        f'{args.model} on {found.images:,} images, {found.held_out:,} of them held out', '',
        'Agreement with the largest resolution, on the images held out:']
    columns = [
        Column('resolution', '.0f', 'px'), Column('tried'), Column('agreement', '.1f', '%'),
        Column('gain at the target'), Column('')]
    rows = [(
        trial.resolution, trial.change or 'as it comes', trial.agreement,
        f'{trial.gain:+.2f} ± {trial.error:.2f} points' if trial.change else '',
        ('kept' if trial.kept else 'undone') if trial.change else '') for trial in found.trials]
    lines += table(columns, rows)
    lines += ['', f'Budgets, read off {found.read_off:,} images:', *budget_table(model, found.budget), '']
    if found.verdict is None:
        side = model.resolutions[max(range(len(chosen.shares)), key=lambda j: chosen.shares[j])]
        lines.append(f'The router does not pay here: for this target, {side} px for all images is the better buy.')
    else:
        lines += verdict_lines(found.verdict)
    if found.time_ratio is not None:
        lines.append(
            f'A batch takes {found.time_ratio:.2f} times what the backbone takes at {model.resolutions[0]} px, both'
            ' deployed, on this machine.')
    return [
        *lines,
        f'timm.create_model({f"local-dir:{Path(args.output)}"!r}, pretrained=True)']
