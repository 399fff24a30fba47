"""Measurements of a finished training: what it answers to every photograph, and what routers make of that.

Thresholds and dials are set on photographs held out, whose labels are not used.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from reproduction.files import read_json, write_json
from reproduction.measuring import machine, versions

import timm_drnet
from timm_drnet.cli import main as timm_drnet_command
from timm_drnet.cli.common import load_model
from timm_drnet.core.drnet import DRNet
from timm_drnet.data.datasets import open_labelled_images
from timm_drnet.data.labelled import make_loader
from timm_drnet.data.reading import data_config
from timm_drnet.evaluate.answers import Answers, choose, collect_answers
from timm_drnet.evaluate.budgets import budget_of, turn_to

TARGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Average costs that routers are set for, of the backbone's at the largest size."""
ADAPTED = 0.7
"""That for which `timm-drnet adapt` is run."""


def measure(configuration: Any, name: str, seed: int, folder: Path, data: Path) -> dict[str, Any]:
    """Measure a training.

    Args:
        configuration: That of the training.
        name: Of the row.
        seed: Of the training.
        folder: Where train.py left its checkpoints.
        data: As `prepare` made it.

    Returns:
        The result, for JSON. Answers are strings with a character for each photograph.
    """
    row, checkpoint = configuration.rows[name], folder / 'last.pth.tar'
    sizes = configuration.rows['cascade'].options['model_kwargs']['resolutions']
    states = [read_json(folder.parent / one.name / 'reproduce.json') for one in configuration.chain(name)]
    side = row.options['input_size'][-1]
    if row.kind == 'drnet':
        model = load_model(row.options['model'], checkpoint=str(checkpoint))
    else:
        model = load_model(
            'drnet', checkpoint=str(checkpoint), backbone=row.options['model'], router='cascade',
            resolutions=tuple(sizes) if side == sizes[0] else (side,))
    val = _answers(model, data, 'val')
    rows = timm_drnet.cost_table(model)
    result: dict[str, Any] = {
        'row': name, 'seed': seed, 'epochs': configuration.total_epochs(name), 'options': row.options,
        **{key: round(sum(one[key] for one in states), 1) for key in ('seconds', 'processor_seconds')},
        'starts': states[-1]['starts'],
        **{part: sum(1 for _ in data.glob(f'{part}/*/*')) for part in ('train', 'held')},
        'images': len(val), 'resolutions': model.resolutions,
        'gflops': [one.backbone_flops / 1e9 for one in rows], 'predictor_gflops': rows[0].predictor_flops / 1e9,
        'right': {side: _text(val.hits[:, j, 0]) for j, side in enumerate(model.resolutions)},
        'routers': {}, 'versions': versions(), 'machine': machine()}
    if len(model.resolutions) == 1:
        return result
    routers = result['routers']
    if model.args.uses_predictor:
        routers['predictor as trained'] = [_routed(model, val)]
        routers['predictor'] = _at_targets(model, _answers(model, data, 'held'), val)
        model = load_model(row.options['model'], checkpoint=str(checkpoint), router='cascade')
        val = dataclasses.replace(val, scores=None)
    held = _answers(model, data, 'held')
    routers['cascade'] = _at_targets(model, held, val)
    if name == 'cascade':
        routers['thresholds from training photographs'] = _at_targets(model, _answers(model, data, 'seen'), val)
    if row.kind == 'backbone':
        model = _adapt(row, sizes, checkpoint, folder / 'adapted', data)
        routers['adapted'] = [{'target': ADAPTED, **_routed(model, _answers(model, data, 'val'))}]
    return result


def write_result(result: Mapping[str, Any], results: Path) -> Path:
    """Keep a result, and tell where."""
    path = results / f'{result["row"]}-seed{result["seed"]}.json'
    write_json(path, result)
    return path


def _adapt(row: Any, sizes: Sequence[int], checkpoint: Path, output: Path, data: Path) -> DRNet:
    """What `timm-drnet adapt` makes of a plain network."""
    if not output.exists():
        code = timm_drnet_command([
            'adapt', row.options['model'], str(data / 'held'), '--checkpoint', str(checkpoint), '--resolutions',
            *map(str, sizes), '--target', str(ADAPTED), '--output', str(output)])
        if code:
            raise RuntimeError(f'timm-drnet adapt ended with exit code {code}')
    return load_model(f'local-dir:{output}')


def _answers(model: DRNet, data: Path, part: str) -> Answers:
    images = open_labelled_images(str(data), model.num_classes, split=part)
    loader = make_loader(images, data_config(model), 32, 1)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub knows it beside a device only
    return collect_answers(model, images.batches(loader), channels_last=True)


def _at_targets(model: DRNet, held: Answers, val: Answers) -> list[dict[str, Any]]:
    """The router at each cost that it can have."""
    largest = timm_drnet.cost_table(model)[0].backbone_flops / 1e9
    found = []
    for target in TARGETS:
        try:
            budget = budget_of(model, dataclasses.replace(held, labels=None), target * largest, points=2)
        except ValueError:
            continue
        assert budget.chosen is not None
        turn_to(model, budget.chosen)
        found.append({'target': target, **_routed(model, val)})
    return found


def _routed(model: DRNet, val: Answers) -> dict[str, Any]:
    """The choices of a router as its dial stands; what is answered at each is told again, as norms may be its own."""
    paid = [one.total_flops / 1e9 for one in timm_drnet.cost_table(model)]
    where = choose(model, val)
    return {
        'thresholds': model.args.thresholds, 'cost_weight': model.args.cost_weight, 'paid': paid,
        'choices': _text(where), 'right': _text(val.hits[torch.arange(len(val)), where, 0])}


def _text(values: torch.Tensor) -> str:
    return ''.join(str(int(value)) for value in values)
