"""A part of the page of results for each run of `train_on_card.py`, written from its JSON file and its words."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .texts import Text

SIDES = (64, 48, 32)
SHOWN = '0.7'
"""The fraction of the cost that routers are compared at in detail."""

NETWORKS = {
    'static': 'one network for each size, that size alone',
    'static-equal-time': 'the same, as many multiplications as all sizes of a DRNet together',
    'pretrain': "all sizes in one network: the paper's pretrain stage",
    'utility': 'all sizes in one network: with the ensemble as teacher (`distill=1`)',
    'teacher': 'all sizes in one network: with the ensemble as teacher (`distill=1`)',
    'topdown': 'the same, and larger sizes as teachers of smaller (`distill=0.5, distill_topdown=0.5`)',
    'expected': "joint stage at all sizes (`joint_resolutions='all'`), predictor by expected loss",
    'paper': 'joint stage of the paper, alpha = 0.66',
    'paper-no-alpha': 'joint stage of the paper, no FLOPs loss',
}
ROUTERS = {
    'cascade': 'cascade, ensemble as teacher',
    'cascade-64-48': 'the same, 48 and 64 px alone',
    'cascade-agreement': 'cascade, ensemble as teacher, rungs by how often answers agree with that of 64 px',
    'cascade-topdown': 'cascade, ensemble and larger sizes as teachers',
    'cascade-pretrain': "cascade, the paper's pretrain stage",
    'utility': 'predictor by utility, with the backbone',
    'alone-train-features': "predictor alone, by utility: backbone's features, training images",
    'alone-held-features': "predictor alone, by utility, on 3,800 other images: backbone's features",
    'alone-held-features-tau0.3':
        "predictor alone, by utility at the temperature 0.3, on 3,800 other images: backbone's features",
    'alone-held-features-tau1-0.1':
        "predictor alone, by utility at a temperature from 1 to 0.1, on 3,800 other images: backbone's features",
    'alone-train-features-tau0.3':
        "predictor alone, by utility at the temperature 0.3, on training images: backbone's features",
    'alone-train-scratch': 'predictor alone, by utility: from scratch, training images',
    'alone-held-scratch': 'predictor alone, by utility, on 3,800 other images: from scratch',
    'alone-train-classes': 'predictor alone, by utility: has learned the classes, training images',
    'alone-held-classes': 'predictor alone, by utility, on 3,800 other images: has learned the classes',
    'expected': 'predictor by expected loss, with the backbone',
    'paper': 'predictor of the paper, alpha = 0.66',
    'paper-no-alpha': 'predictor of the paper, no FLOPs loss',
}

JOINT = ('utility', 'expected', 'paper', 'paper-no-alpha')
"""Routers that were trained beside the network, which have an average of their own."""
AGAINST = {
    'lots': 'above lots', 'own_line': 'above its own line', 'static_line': 'above the static line',
    'static_largest': 'above 64 px', 'equal_work': 'above 64 px, equal multiplications',
}
LIMITS = {
    'limit-32': 'at 32 px', 'limit-48': 'at 48 px', 'limit-all': 'at all three',
}

def section(summary: Mapping[str, Any], text: Text) -> str:
    """Write the part.

    Args:
        summary: The JSON file's content.
        text: Its words.

    Returns:
        Markdown.
    """
    costs = summary['gflops']
    share = [100 * c / costs[0] for c in costs]
    run, predictor = summary['run'], 100 * summary['predictor_gflops'] / costs[0]
    return '\n'.join([
        f'## {text.title}', '', *(f'- {one}' for one in text.setting),
        f'- Epochs: {summary["epochs"]} for every row. Seeds: {len(summary["seeds"])}. Hardware: {run["device"]},'
        f' {_duration(run["seconds"])} for everything; torch {run["torch"]}.',
        f'- Of the {costs[0]:.4f} GFLOPs at 64 px, 48 px cost {share[1]:.1f} % and 32 px {share[2]:.1f} %, the'
        f' predictor {predictor:.1f} %.', '',
        '### Networks held at each size', '', *_held(summary), '',
        f'### Routers at {100 * float(SHOWN):.0f} % of the cost of 64 px', '', *_routers(summary), '',
        '### What a predictor could know', '', *_limits(summary), '',
        '### Accuracy over cost', '', *_curve(summary), '',
        '### What was aimed at', '', '| aim | measured | |', '|---|---|---|',
        *(f'| {" | ".join(cells)} |' for cells in _aims(summary)), '',
        '### What was looked into', '', *(f'- {one}' for one in text.findings), ''])


def _duration(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 3600 else f'{seconds / 3600:.1f} h'


def _held(summary: Mapping[str, Any]) -> list[str]:
    lines = [
        'Top-1 in per cent, mean ± standard deviation over seeds.', '',
        '| network | epochs | 64 px | 48 px | 32 px |', '|---|---|---|---|---|']
    for row, label in NETWORKS.items():
        if row.startswith('static'):
            suffix = row.removeprefix('static')
            each = [summary['held'].get(f'static-{side}{suffix}', []) for side in SIDES]
            cells = [mean([one['top1'][0] for one in found]) for found in each]
            epochs = ', '.join(dict.fromkeys(str(found[0]['epochs']) for found in each if found))
        else:
            found = summary['held'].get(row, [])
            cells = [mean([one['top1'][j] for one in found]) for j in range(len(SIDES))]
            epochs = str(found[0]['epochs']) if found else ''
        if epochs:
            lines.append(f'| {label} | {epochs} | {" | ".join(cells)} |')
    return lines


def _routers(summary: Mapping[str, Any]) -> list[str]:
    against = {key: title for key, title in AGAINST.items() if key in summary['routers']['cascade'][SHOWN]}
    titles = ['router', 'cost', 'shares', 'top-1', *against.values()]
    lines = [
        'Thresholds and dials were set on 1,000 held-out images, without labels; everything that ran is paid for.'
        ' *Lots*: the same shares dealt out by lot in the same network, without paying for a router. *Own line*: the'
        ' best mixture by lot of two sizes of the same network at that cost. *Static line*: the same of networks'
        ' trained at one size each, equal epochs. Differences are in points of top-1 with their 95 % interval over'
        ' images (5,000, paired), then those of each seed.', '',
        f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
    for name, label in ROUTERS.items():
        router = summary['routers'].get(name, {})
        for at, remark in ((SHOWN, ''), ('as trained', ', as trained')):
            if at in router and (at == SHOWN or name in JOINT):
                lines.append(f'| {label}{remark} | {_row(router[at], against)} |')
    return lines


def _limits(summary: Mapping[str, Any]) -> list[str]:
    """What can be known of an image, as a table: the answers that are seen, and what they are worth."""
    first = summary['routers']['limit-32']
    lines = [
        'A router that has seen answers of the network (ensemble as teacher) before it chooses, and pays nothing for'
        ' them: regression on their likeliest classes tells at which sizes an image is answered correctly'
        ' ([`limit.py`](../examples/reproduce/card/limit.py)). Points of top-1 above lots at its own shares, in which'
        ' the predictors above are measured. All that a predictor sees before an answer tells less.', '',
        f'| answers seen | {" | ".join(f"{100 * float(f):.0f} %" for f in first if f != "seeds")} |',
        '|---' * len(first) + '|']
    for name, label in LIMITS.items():
        one = summary['routers'][name]
        lines.append(f'| {label} | {" | ".join(difference(one[f]["lots"]) for f in one if f != "seeds")} |')
    _, best = best_predictor(summary)
    return [
        *lines, '',
        f'The best predictor has {best["lots"]["mean"]:.1f} of the {first[SHOWN]["lots"]["mean"]:.1f} points that the'
        f' whole answer at 32 px is worth at {100 * float(SHOWN):.0f} %. That answer costs a quarter of one at 64 px.']


def _aims(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Each aim that the run can tell of, what was measured, and whether it is reached."""
    apart, routers = summary['held_differences'], summary['routers']
    cascade, utility = routers['cascade'][SHOWN], routers.get('utility')

    def reached(*each: float, least: float = 0.0) -> str:
        return 'reached' if min(each) >= least else '**not reached**'

    _, best = best_predictor(summary)

    def shares(one: Mapping[str, Any]) -> list[float]:
        return [sorted(each)[-2] for each in one['shares']]

    rising = [apart['alone 64 over 48'], apart['alone 48 over 32']]
    aims = [
        ('20 epochs or more', str(summary['epochs']), reached(summary['epochs'], least=20)),
        ('a network for 48 px more accurate than one for 32 px', difference(rising[1]), reached(rising[1]['low'])),
        ('one for 64 px more accurate than one for 48 px', difference(rising[0]), reached(rising[0]['low'])),
        ('a predictor at least 1 point above lots at its shares, every seed; the best, at 70 %',
         difference(best['lots']), reached(*best['lots']['seeds'], least=1)),
        ('the same of a cascade', difference(cascade['lots']), reached(*cascade['lots']['seeds'], least=1)),
        ('at 70 % as accurate as the backbone alone at 64 px: cascade, equal epochs',
         difference(cascade['static_largest']), reached(*cascade['static_largest']['seeds']))]
    if 'equal_work' in cascade:
        aims.append(('the same, equal multiplications', difference(cascade['equal_work']),
                     reached(*cascade['equal_work']['seeds'])))
    aims.append(
        ('at least 0.5 points above the static line of networks trained at each size, equal epochs: cascade',
         difference(cascade['static_line']), reached(*cascade['static_line']['seeds'], least=0.5)))
    turned = f'with its dial at {100 * float(SHOWN):.0f} %'
    settings = {'as trained': utility['as trained'], turned: utility[SHOWN]} if utility else {turned: best}
    for setting, one in settings.items():
        each = shares(one)
        aims.append((f'10 % of the images or more at two sizes: predictor, {setting}', _percent(each),
                     reached(*each, least=0.1)))
    return aims


def best_predictor(summary: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The predictor whose interval above lots at `SHOWN` begins highest: its name, and its figures there."""
    each = {name: one[SHOWN] for name, one in summary['routers'].items()
            if not name.startswith(('cascade', 'limit')) and SHOWN in one}
    name = max(each, key=lambda one: float(each[one]['lots']['low']))
    return name, each[name]


def _percent(values: Sequence[float]) -> str:
    return ', '.join(f'{100 * v:.0f} %' for v in values)


def _row(one: Mapping[str, Any], against: Iterable[str]) -> str:
    shares = ', '.join('/'.join(f'{100 * s:.0f}' for s in each) for each in one['shares'])
    differences = [difference(one[key]) for key in against]
    return ' | '.join([f'{100 * statistics.fmean(one["fraction"]):.1f} %', shares, mean(one['top1']), *differences])


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
        lines.append(f'| {label} | {" | ".join(mean(values[f]) for f in fractions)} |')
    for name, label in ROUTERS.items():
        router = summary['routers'].get(name, {})
        cells = [mean(router[f]['top1']) if f in router else '' for f in fractions]
        if any(cells):
            lines.append(f'| {label} | {" | ".join(cells)} |')
    return lines


def mean(values: Sequence[float]) -> str:
    """Their mean and standard deviation, in two decimals."""
    if not values:
        return ''
    deviation = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.2f}{deviation}'
