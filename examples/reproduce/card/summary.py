"""All numbers of the card's experiment, as one JSON file from which the page is written."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_drnet.cost.costs import Costs

from .compare import (
    Answers,
    Difference,
    Routed,
    cascade,
    difference,
    line,
    lots,
    oracle,
    predicted,
    read_answers,
    read_scores,
)
from .networks import RESOLUTIONS

FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Average costs that routers are held to, of the backbone's at the largest size."""
STATIC = tuple(f'static-{side}' for side in RESOLUTIONS)
NETWORKS = ('pretrain', 'utility', 'expected', 'paper', 'paper-no-alpha')
"""Rows with a network of their own for all resolutions."""
ROUTERS = {
    'cascade': ('utility', 'cascade'), 'cascade-pretrain': ('pretrain', 'cascade'),
    **{row: (row, 'predictor') for row in ('utility', 'expected', 'paper', 'paper-no-alpha')},
    **{f'alone-{where}-{kind}': ('utility', f'alone-{where}-{kind}')
       for where in ('held', 'train') for kind in ('features', 'scratch', 'classes')},
}
"""Routers, with the row whose network answers, and what routes."""


def summarize(folder: Path) -> dict[str, Any]:
    """Compute everything that the page tells.

    Args:
        folder: What the run left.

    Returns:
        Plain values for JSON.
    """
    lines = [json.loads(one) for one in (folder / 'rows.jsonl').read_text().splitlines()]
    rows = {(one['row'], one['seed']): one for one in lines}
    seeds = sorted(seed for row, seed in rows if row == 'utility' and ('static-32', seed) in rows)
    first = rows['utility', seeds[0]]
    costs = first['gflops']
    found: dict[str, Any] = {
        'run': json.loads((folder / 'run.json').read_text()), 'seeds': seeds, 'epochs': first['epochs'],
        'gflops': costs, 'predictor_gflops': first['predictor_gflops'], 'held': {}, 'routers': {}}
    for row in (*STATIC, *(f'{one}-equal-time' for one in STATIC), *NETWORKS):
        there = [rows[row, seed] for seed in seeds if (row, seed) in rows]
        found['held'][row] = [{key: one[key] for key in ('epochs', 'top1')} for one in there]
    static = {seed: _static(folder, seed) for seed in seeds}
    found['static_line'] = {
        str(f): [100 * float(line(static[seed], costs, f * costs[0]).mean()) for seed in seeds] for f in FRACTIONS}
    found['oracle'] = {
        str(f): [oracle(_answers(folder, 'utility', seed, 'val'), costs, f * costs[0]) for seed in seeds]
        for f in FRACTIONS}
    for name, (network, router) in ROUTERS.items():
        needed = network if router in ('cascade', 'predictor') else router
        of = [seed for seed in seeds if (needed, seed) in rows and (network, seed) in rows]
        if of:
            found['routers'][name] = _router(folder, rows, of, network, router, costs, static)
    return found


def _static(folder: Path, seed: int) -> torch.Tensor:
    """Whether the networks that know one size each are right, (N, R)."""
    return torch.cat([_answers(folder, row, seed, 'val').hits for row in STATIC], dim=1)


def _answers(folder: Path, row: str, seed: int, part: str) -> Answers:
    return read_answers(folder / f'{row}-seed{seed}.npz', part)


def _router(
        folder: Path,
        rows: dict[tuple[str, int], dict[str, Any]],
        seeds: Sequence[int],
        network: str,
        router: str,
        costs: Sequence[float],
        static: dict[int, torch.Tensor],
) -> dict[str, Any]:
    """A router at every fraction that it reaches with all seeds, and a predictor as trained."""
    scored = network if router == 'predictor' else router
    answers = {seed: _answers(folder, network, seed, 'val') for seed in seeds}
    result: dict[str, Any] = {'seeds': list(seeds)}
    for fraction in (*FRACTIONS, None):
        each: list[Routed | None] = []
        for seed in seeds:
            target = None if fraction is None else fraction * costs[0]
            if router == 'cascade':
                dial = _answers(folder, network, seed, 'dial')
                each.append(None if target is None else cascade(dial, answers[seed], costs, target))
            else:
                path = folder / f'{scored}-seed{seed}.npz'
                price = Costs('GFLOPs', tuple(costs), rows[scored, seed]['predictor_gflops'])
                each.append(predicted(
                    read_scores(path, 'dial'), read_scores(path, 'val'), answers[seed], price, target))
        routed = [one for one in each if one is not None]
        if len(routed) == len(seeds):
            result['as trained' if fraction is None else str(fraction)] = _compared(
                routed, [answers[seed] for seed in seeds], [static[seed] for seed in seeds], costs)
    return result


def _compared(
        routed: Sequence[Routed],
        answers: Sequence[Answers],
        static: Sequence[torch.Tensor],
        costs: Sequence[float],
) -> dict[str, Any]:
    """One router at one cost, one entry for each seed, against what there is without it."""
    hits = [one.hits for one in routed]
    others = {
        'lots': [lots(one, each) for one, each in zip(routed, answers, strict=True)],
        'own_line': [line(each.hits, costs, one.cost) for one, each in zip(routed, answers, strict=True)],
        'static_line': [line(each, costs, one.cost) for one, each in zip(routed, static, strict=True)],
        'static_largest': [each[:, 0] for each in static],
    }
    return {
        'top1': [100 * float(one.mean()) for one in hits], 'fraction': [one.cost / costs[0] for one in routed],
        'shares': [one.shares for one in routed],
        **{name: _told(difference(hits, below)) for name, below in others.items()}}


def _told(one: Difference) -> dict[str, Any]:
    return {**asdict(one), 'mean': one.mean}


def write_summary(folder: Path, output: Path) -> None:
    """Write the JSON file.

    Args:
        folder: What the run left.
        output: The file.
    """
    rounded = json.loads(json.dumps(summarize(folder)), parse_float=lambda text: float(np.format_float_positional(
        float(text), precision=6, fractional=False, trim='-')))
    output.write_text(json.dumps(rounded, indent=1) + '\n')
