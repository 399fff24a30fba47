"""The part of the page of results about the card's experiment, written from its JSON file alone."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN = '0.7'
"""The fraction of the cost that routers are compared at in detail."""

NETWORKS = {
    'static': 'one network for each size, that size alone',
    'static-equal-time': 'the same, as many multiplications as all sizes of a DRNet together',
    'pretrain': "all sizes in one network: the paper's pretrain stage",
    'utility': 'all sizes in one network: with the ensemble as teacher (`distill=1`)',
    'expected': "joint stage at all sizes (`joint_resolutions='all'`), predictor by expected loss",
    'paper': 'joint stage of the paper, alpha = 0.66',
    'paper-no-alpha': 'joint stage of the paper, no FLOPs loss',
}
ROUTERS = {
    'cascade': 'cascade, ensemble as teacher',
    'cascade-pretrain': "cascade, the paper's pretrain stage",
    'utility': 'predictor by utility, with the backbone',
    'alone-train-features': "predictor alone, by utility: backbone's features, training images",
    'alone-held-features': 'the same, on 3,800 other images',
    'alone-train-scratch': 'predictor alone, by utility: from scratch, training images',
    'alone-held-scratch': 'the same, on 3,800 other images',
    'alone-train-classes': 'predictor alone, by utility: has learned the classes, training images',
    'alone-held-classes': 'the same, on 3,800 other images',
    'expected': 'predictor by expected loss, with the backbone',
    'paper': 'predictor of the paper, alpha = 0.66',
    'paper-no-alpha': 'predictor of the paper, no FLOPs loss',
}


def section(summary: Mapping[str, Any], texts: Mapping[str, Sequence[str]]) -> str:
    """Write the part.

    Args:
        summary: The JSON file's content.
        texts: ``setting`` and ``findings``: sentences for readers.

    Returns:
        Markdown.
    """
    sides = (64, 48, 32)
    costs = summary['gflops']
    share = [100 * c / costs[0] for c in costs]
    run, predictor = summary['run'], 100 * summary['predictor_gflops'] / costs[0]
    lines = [
        '## A card: rows and seeds side by side', '', *(f'- {one}' for one in texts['setting']),
        f'- Epochs: {summary["epochs"]} for every row. Seeds: {len(summary["seeds"])}. Hardware: {run["device"]},'
        f' {run["seconds"]:.0f} s for everything; torch {run["torch"]}.',
        f'- Of the {costs[0]:.4f} GFLOPs at 64 px, 48 px cost {share[1]:.1f} % and 32 px {share[2]:.1f} %, the'
        f' predictor {predictor:.1f} %.', '',
        '### Networks held at each size', '', 'Top-1 in per cent, mean ± standard deviation over seeds.', '',
        '| network | epochs | 64 px | 48 px | 32 px |', '|---|---|---|---|---|']
    for row, label in NETWORKS.items():
        if row.startswith('static'):
            suffix = row.removeprefix('static')
            each = [summary['held'].get(f'static-{side}{suffix}', []) for side in sides]
            cells = [_mean([one['top1'][0] for one in found]) for found in each]
            epochs = ', '.join(dict.fromkeys(str(found[0]['epochs']) for found in each if found))
        else:
            found = summary['held'].get(row, [])
            cells = [_mean([one['top1'][j] for one in found]) for j in range(3)]
            epochs = str(found[0]['epochs']) if found else ''
        if epochs:
            lines.append(f'| {label} | {epochs} | {" | ".join(cells)} |')
    lines += [
        '', f'### Routers at {100 * float(SHOWN):.0f} % of the cost of 64 px', '',
        'Thresholds and dials were set on 1,000 held-out images, without labels; everything that ran is paid for.'
        ' *Lots*: the same shares dealt out by lot in the same network, without paying for a router. *Own line*: the'
        ' best mixture by lot of two sizes of the same network at that cost. *Static line*: the same of networks'
        ' trained at one size each. Differences are in points of top-1 with their 95 % interval over images (5,000,'
        ' paired), then those of each seed.', '',
        '| router | cost | shares | top-1 | above lots | above its own line | above the static line | above 64 px |',
        '|---|---|---|---|---|---|---|---|']
    for name, label in ROUTERS.items():
        router = summary['routers'].get(name, {})
        for at, remark in ((SHOWN, ''), ('as trained', ', as trained')):
            if at in router and (at == SHOWN or name in ('utility', 'expected', 'paper', 'paper-no-alpha')):
                lines.append(f'| {label}{remark} | {_row(router[at])} |')
    lines += ['', '### Accuracy over cost', '', *_curve(summary), '']
    lines += ['### What was found', '', *(f'- {one}' for one in texts['findings']), '']
    return '\n'.join(lines)


def _row(one: Mapping[str, Any]) -> str:
    shares = ', '.join('/'.join(f'{100 * s:.0f}' for s in each) for each in one['shares'])
    differences = [difference(one[key]) for key in ('lots', 'own_line', 'static_line', 'static_largest')]
    return ' | '.join([f'{100 * statistics.fmean(one["fraction"]):.1f} %', shares, _mean(one['top1']), *differences])


def difference(one: Mapping[str, Any]) -> str:
    """A difference with its interval and seeds, in bold where the interval leaves out 0 and all seeds agree."""
    agree = all(d > 0 for d in one['seeds']) or all(d < 0 for d in one['seeds'])
    mark = '**' if agree and one['low'] * one['high'] > 0 else ''
    seeds = ', '.join(f'{d:+.1f}' for d in one['seeds'])
    return f'{mark}{one["mean"]:+.2f}{mark} [{one["low"]:+.2f}, {one["high"]:+.2f}] ({seeds})'


def _curve(summary: Mapping[str, Any]) -> list[str]:
    fractions = list(summary['static_line'])
    lines = [f'| | {" | ".join(f"{100 * float(f):.0f} %" for f in fractions)} |', '|---' * (len(fractions) + 1) + '|']
    named = {'networks trained at one size each, by lot (static line)': summary['static_line'],
             'oracle of the distilled network': summary['oracle']}
    for label, values in named.items():
        lines.append(f'| {label} | {" | ".join(_mean(values[f]) for f in fractions)} |')
    for name, label in ROUTERS.items():
        router = summary['routers'].get(name, {})
        cells = [_mean(router[f]['top1']) if f in router else '' for f in fractions]
        if any(cells):
            lines.append(f'| {label} | {" | ".join(cells)} |')
    return lines


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ''
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.2f}{deviation}'
