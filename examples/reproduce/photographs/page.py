"""The page about fine-tuning on photographs, written from the results alone."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from card.compare import difference, line
from card.page import difference as written
from card.page import mean
from reproduction.files import read_json, write_text

PAGE = Path(__file__).resolve().parents[3] / 'docs' / 'caltech101.md'
SHOWN = 0.7

HEAD = """# Measured on photographs

<!-- Written by examples/reproduce/train_on_photographs.py report. Do not edit. -->

What the first epochs of the recipes in [training](train.md), without their warmup, give on the {images} validation
photographs of Caltech-101 (101 classes), trained on {train:,} others from the ImageNet weights that ship:
EfficientNet-Lite0 at {sides} px. All of these networks were still learning.

- **Trained** by timm's `train.py`: AdamW, {batch} photographs a batch, crops of 30 to 100 % of the area, float32; in
  each epoch a rate of {rate:g} that falls to 0. {seeds}.{resumed}
- **Held out**: {held} more photographs, for thresholds, without their labels. Nothing was set or chosen on the
  validation photographs.
- Of the {gflops:.3f} GFLOPs at {largest} px, {costs}. In a cascade everything that ran is paid for.
- Differences are in points of top-1, paired by photograph, with their 95 % interval over photographs, then those of
  each seed; in bold where the interval leaves out 0 and all seeds agree.
"""

NETWORKS = {
    'alone': 'plain networks, one trained for each size',
    'plain': 'the one of {largest} px, given smaller images',
    'cascade': 'one network for all sizes (`distill=1`)',
    'no-teacher': 'the same without `distill=1`',
    'predictor': 'the same, trained beside a predictor',
}
ROUTERS = {
    ('cascade', 'cascade'): 'cascade, trained at all sizes',
    ('cascade', 'thresholds from training photographs'): 'the same, thresholds set on photographs it was trained on',
    ('no-teacher', 'cascade'): 'cascade, trained without `distill=1`',
    ('plain', 'cascade'): 'plain network of {largest} px as a cascade, thresholds alone',
    ('plain', 'adapted'): 'plain network of {largest} px, `timm-drnet adapt` on the photographs held out',
    ('predictor', 'predictor as trained'): 'predictor, trained beside the network, as trained',
    ('predictor', 'predictor'): 'predictor, trained beside the network, with its dial',
    ('predictor', 'cascade'): 'its network as a cascade, without it',
}
LONGER = '-longer'
"""The end of the name of a row that goes on from another, for as long again."""

Results = dict[str, dict[int, dict[str, Any]]]
"""By row and seed; ``plain`` and ``plain-longer`` are the plain networks of the largest size."""


def write_page(results: Path, page: Path | None = None) -> None:
    """Write the page.

    Args:
        results: Folder of a JSON file for each row and seed.
        page: The file to write; None for that of the documentation.
    """
    found: Results = {}
    for path in sorted(results.glob('*.json')):
        one = read_json(path)
        found.setdefault(one['row'], {})[one['seed']] = one
    for end in ('', LONGER):
        found[f'plain{end}'] = found.get(f'plain-{_sides(found)[0]}{end}', {})
    write_text(page or PAGE, '\n'.join([
        _head(found), *_networks(found), '', *_routers(found), '', *_curve(found), '', *_repeat(found), '']))


def _head(found: Results) -> str:
    one = found['cascade'][min(found['cascade'])]
    sides, costs, options = _sides(found), one['gflops'], one['options']
    trained = {name: row for name, row in found.items() if name not in ('plain', f'plain{LONGER}')}
    resumed = sum(each['starts'] - 1 for row in trained.values() for each in row.values())
    return HEAD.format(
        **{key: one[key] for key in ('images', 'train', 'held')},
        sides=', '.join(map(str, sides)), largest=sides[0], batch=options['batch_size'], rate=options['lr'],
        seeds=_seeds(trained), gflops=costs[0],
        costs=' and '.join(f'{side} px cost {100 * cost / costs[0]:.0f} %' for side, cost in zip(
            sides[1:], costs[1:], strict=True)),
        resumed=f' Interrupted, and gone on from the last epoch: {resumed}.' if resumed else '')


def _seeds(trained: Results) -> str:
    """How many there are of each row, and of which there are fewer."""
    counts = [len(each) for each in trained.values()]
    most = max(counts)
    others = [f'{len(each)} of `{row}`' for row, each in trained.items() if len(each) != most]
    return f'Seeds of each: {most}' + (f', but {", ".join(others)}' if others else '')


def _sides(found: Results) -> list[int]:
    return list(found['cascade'][min(found['cascade'])]['resolutions'])


def _networks(found: Results) -> list[str]:
    sides = _sides(found)
    lines = [
        '## Networks held at each size', '',
        'Top-1 in per cent, mean ± standard deviation over seeds, and the minutes that training took of one processor'
        ' core.', '',
        f'| network | epochs | {" | ".join(f"{side} px" for side in sides)} | minutes |', '|---|---|---|---|---|---|']
    for end in ('', LONGER):
        for row, label in NETWORKS.items():
            rows = [found.get(f'plain-{side}{end}' if row == 'alone' else f'{row}{end}', {}) for side in sides]
            every = [one for each in rows for one in each.values()]
            if every:
                cells = [mean([_top1(one['right'][str(side)]) for one in each.values()])
                         for side, each in zip(sides, rows, strict=True)]
                times = [_minutes(each) for each in rows if each]
                lines.append(
                    f'| {label.format(largest=sides[0])} | {every[0]["epochs"]} | {" | ".join(cells)} |'
                    f' {" + ".join(times) if row == "alone" else times[0]} |')
    gains = []
    for row, other, what in (('cascade', '', ''), (f'cascade{LONGER}', LONGER, ''), ('cascade', LONGER, ', as long')):
        for side in sides:
            plain = found.get(f'plain-{side}{other}', {})
            seeds = sorted(found.get(row, {}).keys() & plain.keys())
            if seeds and not (what and side != sides[0]):
                own, its = ([_bits(one[seed]['right'][str(side)]) for seed in seeds] for one in (found[row], plain))
                gains.append(
                    f'| {found[row][seeds[0]]["epochs"]} | {side} px | {plain[seeds[0]]["epochs"]}{what} |'
                    f' {_written(difference(own, its))} |')
    return [*lines, '', 'One network for all sizes, less the plain one of each size:', '',
            '| epochs | held at | epochs of the plain one | difference |', '|---|---|---|---|', *gains]


def _routers(found: Results) -> list[str]:
    lines = [
        f'## Routers at {100 * SHOWN:.0f} % of the cost of {_sides(found)[0]} px', '',
        'Thresholds and dials are set to that on the photographs held out. *Lots*: the same shares dealt out by lot in'
        ' the same network, for nothing. *Own line*: the best mixture by lot of two sizes of the same network at that'
        ' cost. *Static line*: the same of the plain networks trained at one size each. *Plain*: the plain network at'
        ' the largest size for as many epochs, that is at full cost. *As long*: the same, trained for as long as the'
        ' network for all sizes.', '',
        f'| router | epochs | cost | {"/".join(map(str, _sides(found)))} px, % of photographs | top-1 | above lots'
        ' | above its own line | above the static line | above plain | above plain, as long |',
        '|---|---|---|---|---|---|---|---|---|---|']
    for end in ('', LONGER):
        for (row, router), label in ROUTERS.items():
            settings = {
                seed: setting for seed, one in found.get(f'{row}{end}', {}).items()
                for setting in one['routers'].get(router, ()) if setting.get('target', SHOWN) == SHOWN}
            if settings:
                lines.append(f'| {label.format(largest=_sides(found)[0])} | {_router(found, row, end, settings)} |')
    return lines


def _router(found: Results, row: str, end: str, settings: Mapping[int, Mapping[str, Any]]) -> str:
    sides, epochs = _sides(found), 0
    fractions, shares, top1 = [], [], []
    pairs: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {
        name: ([], []) for name in ('lots', 'own', 'static', 'plain', 'as long')}
    for seed, setting in settings.items():
        one = found[f'{row}{end}'][seed]
        epochs, costs, right = one['epochs'], one['gflops'], _bits(setting['right'])
        own = torch.stack([_bits(one['right'][str(side)]) for side in sides], dim=1)
        part, cost = _spent(setting)
        fractions.append(cost / costs[0])
        shares.append('/'.join(f'{100 * p:.0f}' for p in part))
        top1.append(100 * float(right.mean()))
        others = {'lots': own @ torch.tensor(part, dtype=torch.float64), 'own': line(own, costs, cost)}
        for name, rows in (('plain', f'plain{end}'), ('as long', f'plain{LONGER}')):
            if seed in found[rows] and not (name == 'as long' and (end or row == 'plain')):
                others[name] = _bits(found[rows][seed]['right'][str(sides[0])])
        alone = [found.get(f'plain-{side}{end}', {}).get(seed) for side in sides]
        if all(alone):
            static = torch.stack([_bits(a['right'][str(s)]) for a, s in zip(alone, sides, strict=True) if a], dim=1)
            others['static'] = line(static, costs, cost)
        for name, other in others.items():
            pairs[name][0].append(right)
            pairs[name][1].append(other)
    differences = [_written(difference(*pair)) if pair[0] else '' for pair in pairs.values()]
    return ' | '.join([
        str(epochs), f'{100 * statistics.fmean(fractions):.1f} %', ', '.join(shares), mean(top1), *differences])


def _curve(found: Results) -> list[str]:
    targets = sorted({
        setting['target'] for row in found.values() for one in row.values() for each in one['routers'].values()
        for setting in each if 'target' in setting})
    lines = [
        '## Accuracy over cost', '',
        'Top-1 in per cent at the cost that was aimed at, in per cent of the largest size; in brackets what was spent'
        ' on the validation photographs.', '',
        f'| router | epochs | {" | ".join(f"{100 * t:.0f} %" for t in targets)} |',
        '|---' * (len(targets) + 2) + '|']
    for end in ('', LONGER):
        for (row, router), label in ROUTERS.items():
            cells, epochs = [], 0
            for target in targets:
                each = [
                    (one, setting) for one in found.get(f'{row}{end}', {}).values()
                    for setting in one['routers'].get(router, ()) if setting.get('target') == target]
                spent = statistics.fmean(_spent(setting)[1] / one['gflops'][0] for one, setting in each) if each else 0
                top1 = statistics.fmean(_top1(setting['right']) for _, setting in each) if each else 0
                cells.append(f'{top1:.2f} ({100 * spent:.0f})' if each else '')
                epochs = each[0][0]['epochs'] if each else epochs
            if any(cells):
                lines.append(f'| {label.format(largest=_sides(found)[0])} | {epochs} | {" | ".join(cells)} |')
    return lines


def _repeat(found: Results) -> list[str]:
    one = next(iter(found['cascade'].values()))
    machine, versions = one['machine'], one['versions']
    return [
        '## Repeat it', '',
        f'Measured with torch {versions["torch"]} and timm {versions["timm"]}, one thread of an {machine["processor"]},'
        ' beside other work. `caltech101` is a folder with `train` and `val`, and in each of these a folder for each'
        ' class.', '', '<!-- needs train.py, Caltech-101 and hours -->', '```sh',
        'python examples/reproduce/train_on_photographs.py prepare caltech101 photos work',
        'python examples/reproduce/reproduce.py run examples/reproduce/caltech101.yaml --train-script train.py \\',
        '    --data photos --work work',
        'python examples/reproduce/train_on_photographs.py measure photos work',
        'python examples/reproduce/train_on_photographs.py report', '```', '',
        'All of these may be interrupted and go on when they are started again.']


def _minutes(rows: Mapping[int, Mapping[str, Any]]) -> str:
    return f'{statistics.fmean(one["processor_seconds"] for one in rows.values()) / 60:.0f}'


def _spent(setting: Mapping[str, Any]) -> tuple[list[float], float]:
    """Share of the photographs that end at each size, and the average cost."""
    choices = setting['choices']
    part = [choices.count(str(j)) / len(choices) for j in range(len(setting['paid']))]
    return part, sum(p * paid for p, paid in zip(part, setting['paid'], strict=True))


def _written(one: Any) -> str:
    return written({'mean': one.mean, 'low': one.low, 'high': one.high, 'seeds': one.seeds})


def _top1(right: str) -> float:
    return 100 * right.count('1') / len(right)


def _bits(right: Sequence[str]) -> torch.Tensor:
    return torch.tensor([float(one) for one in right], dtype=torch.float64)
