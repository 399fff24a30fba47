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
from .limit import expected_scores
from .networks import RESOLUTIONS
from .rows import TAUGHT, finished

FRACTIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Average costs that routers are held to, of the backbone's at the largest size."""
STATIC = tuple(f'static-{side}' for side in RESOLUTIONS)
NETWORKS = ('pretrain', *TAUGHT, 'topdown', 'expected', 'paper', 'paper-no-alpha')
"""Rows with a network of their own for all resolutions."""
TEMPERATURES = ('features-tau0.3', 'features-tau1-0.1')
ROUTERS = {
    'cascade': (TAUGHT, 'cascade'), 'cascade-64-48': (TAUGHT, 'cascade-64-48'),
    'cascade-agreement': (TAUGHT, 'cascade-agreement'),
    'cascade-topdown': (('topdown',), 'cascade'), 'cascade-pretrain': (('pretrain',), 'cascade'),
    **{row: ((row,), 'predictor') for row in ('utility', 'expected', 'paper', 'paper-no-alpha')},
    **{f'alone-{where}-{kind}': (TAUGHT, f'alone-{where}-{kind}')
       for where in ('held', 'train') for kind in ('features', *TEMPERATURES, 'scratch', 'classes')},
    **{f'limit-{side}': (TAUGHT, f'limit-{side}') for side in (*RESOLUTIONS[:0:-1], 'all')},
}
"""Routers, with the row whose network answers (of two the one that there is), and what routes."""
HELD = {
    'alone 64 over 48': (('static-64', 0), ('static-48', 0)),
    'alone 48 over 32': (('static-48', 0), ('static-32', 0)),
    **{f'{row} over alone at {side}': ((row, j), (f'static-{side}', 0))
       for row in ('pretrain', *TAUGHT) for j, side in enumerate(RESOLUTIONS)},
    **{f'utility over pretrain at {side}': (('utility', j), ('pretrain', j)) for j, side in enumerate(RESOLUTIONS)},
    **{f'topdown over teacher at {side}': (('topdown', j), ('teacher', j)) for j, side in enumerate(RESOLUTIONS)},
    **{f'paper over pretrain at {side}': (('paper', j), ('pretrain', j)) for j, side in enumerate(RESOLUTIONS)},
    **{f'{row} over equal work at 64': ((row, 0), ('static-64-equal-time', 0)) for row in ('pretrain', *TAUGHT)},
    'paper at 48 over equal work at 64': (('paper', 1), ('static-64-equal-time', 0)),
    'paper at 48 over alone at 48': (('paper', 1), ('static-48', 0)),
}
"""Pairs of networks, each held at one of its resolutions."""


def summarize(folder: Path) -> dict[str, Any]:
    """Compute everything that the page tells.

    Args:
        folder: What the run left.

    Returns:
        Plain values for JSON.
    """
    rows = finished(folder)
    taught = next(row for row in TAUGHT if any(row == one for one, _ in rows))
    seeds = sorted(seed for row, seed in rows if row == taught and ('static-32', seed) in rows)
    first = rows[taught, seeds[0]]
    predictor = 'utility' if taught == 'utility' else 'alone-held-features'  # a teacher has none in use
    costs = first['gflops']
    found: dict[str, Any] = {
        'run': json.loads((folder / 'run.json').read_text()), 'seeds': seeds, 'epochs': first['epochs'],
        'gflops': costs, 'predictor_gflops': rows[predictor, seeds[0]]['predictor_gflops'],
        'held': {}, 'held_differences': {}, 'routers': {}}
    for row in (*STATIC, *(f'{one}-equal-time' for one in STATIC), *NETWORKS):
        each = [
            {'epochs': rows[row, seed]['epochs'],
             'top1': [100 * float(h) for h in _answers(folder, row, seed, 'val').hits.mean(dim=0)]}
            for seed in seeds if (row, seed) in rows]
        if each:
            found['held'][row] = each
    for name, pair in HELD.items():
        of = [seed for seed in seeds if all((row, seed) in rows for row, _ in pair)]
        above, below = ([_answers(folder, row, seed, 'val').hits[:, j] for seed in of] for row, j in pair)
        if of:
            found['held_differences'][name] = _told(difference(above, below))
    static = {seed: _static(folder, seed) for seed in seeds}
    found['static_line'] = {
        str(f): [100 * float(line(static[seed], costs, f * costs[0]).mean()) for seed in seeds] for f in FRACTIONS}
    found['oracle'] = {
        str(f): [oracle(_answers(folder, taught, seed, 'val'), costs, f * costs[0]) for seed in seeds]
        for f in FRACTIONS}
    for name, (networks, router) in ROUTERS.items():
        network = taught if taught in networks else networks[0]
        needed = router if router.startswith('alone') else network
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
    scored = router if router.startswith('alone') else network
    answers = {seed: _answers(folder, network, seed, 'val') for seed in seeds}
    longer = [seed for seed in seeds if ('static-64-equal-time', seed) in rows]
    equal_work = [_answers(folder, 'static-64-equal-time', seed, 'val').hits[:, 0] for seed in longer]
    result: dict[str, Any] = {'seeds': list(seeds)}
    for fraction in (*FRACTIONS, None):
        each: list[Routed | None] = []
        for seed in seeds:
            target = None if fraction is None else fraction * costs[0]
            if router.startswith('cascade'):
                of = 2 if router == 'cascade-64-48' else len(costs)
                dial = read_answers(
                    folder / f'{network}-seed{seed}.npz', 'dial', router == 'cascade-agreement').largest(of)
                each.append(None if target is None else cascade(dial, answers[seed].largest(of), costs[:of], target))
            elif router.startswith('limit'):
                seen = range(len(costs)) if router == 'limit-all' else [RESOLUTIONS.index(int(router[6:]))]
                scores = expected_scores(folder / f'{network}-seed{seed}.npz', seen)
                each.append(None if target is None else predicted(
                    scores, scores, answers[seed], Costs('GFLOPs', tuple(costs), 0.0), target))
            else:
                path = folder / f'{scored}-seed{seed}.npz'
                price = Costs('GFLOPs', tuple(costs), rows[scored, seed]['predictor_gflops'])
                each.append(predicted(
                    read_scores(path, 'dial'), read_scores(path, 'val'), answers[seed], price, target))
        routed = [one for one in each if one is not None]
        if len(routed) == len(seeds):
            result['as trained' if fraction is None else str(fraction)] = _compared(
                routed, [answers[seed] for seed in seeds], [static[seed] for seed in seeds],
                equal_work if longer == seeds else [], costs)
    return result


def _compared(
        routed: Sequence[Routed],
        answers: Sequence[Answers],
        static: Sequence[torch.Tensor],
        equal_work: Sequence[torch.Tensor],
        costs: Sequence[float],
) -> dict[str, Any]:
    """One router at one cost, one entry for each seed, against what there is without it."""
    hits = [one.hits for one in routed]
    others = {
        'lots': [lots(one, each) for one, each in zip(routed, answers, strict=True)],
        'own_line': [line(each.hits, costs, one.cost) for one, each in zip(routed, answers, strict=True)],
        'static_line': [line(each, costs, one.cost) for one, each in zip(routed, static, strict=True)],
        'static_largest': [each[:, 0] for each in static],
        **({'equal_work': equal_work} if equal_work else {}),
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
