"""The page of results: the paper's tables beside ours, made from the results alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from card import advice, page
from card.texts import read_texts

from .beyond import LABELS, claims, routing_table
from .comparison import NOT_MEASURED, Sample, compare, sample
from .configuration import Configuration
from .figure import draw
from .files import read_json, write_text
from .paper import TABLES, Claim, PaperRow, Table
from .progress import duration
from .results import has_result, result_path

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Of one configuration: by row, one for each seed."""

CARD, LONGER = 'card.json', 'longer.json'
"""Beside the results of the configurations: what `train_on_card.py summarize` has written; the page begins with it."""

_TITLE = """\
# Results

<!-- Written by examples/reproduce/reproduce.py report. Do not edit. -->
"""

_INTRODUCTION = """\
## The paper's tables, trained by train.py

The paper's Tables 1, 2, 4 and 5 beside our own measurements, with everything trained by timm's `train.py` from scratch.
How to repeat them: [examples/reproduce](../examples/reproduce).

How to read the tables:

- FLOPs are multiply-accumulates per image as a fraction of the backbone's at its largest size, predictor included. That
  is what can be compared between networks of different size; the paper's are divided by 4.089 G.
- Every row had the same number of epochs: those of the pretrain stage and of the joint stage together equal those of a
  backbone alone. But an epoch of the pretrain stage runs every image at every resolution, so it costs more. Accuracy is
  that after the last epoch; none was selected on the validation images.
- Ours is the mean ± the standard deviation over seeds, and n their number; with one seed there is no deviation.
- In these tables a claim *held*, by a weaker rule than above, if the difference of the means has the right sign and is
  larger than its standard error, pooled over both rows; it *did not hold* if that is so with the other sign; else the
  two are *not distinguishable*. One standard error is a low bar: two equal rows would pass it in about one case of six.
  With one seed the error is that of the validation images alone, which leaves out the luck of the seed, and the verdict
  says so.
- DRNets were measured by `timm-drnet validate`. A backbone alone was measured by `train.py`, on the same images.
"""


def load_results(configuration: Configuration, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the results of a configuration that belong to its present options.

    Args:
        configuration: The configuration.
        folder: Of all results.

    Returns:
        By row, in the order of the seeds.

    Raises:
        UserError: If one was measured with other options.
    """
    return {
        name: [
            read_json(result_path(folder, configuration, name, seed)) for seed in configuration.seeds
            if has_result(folder, configuration, name, seed)]
        for name, row in configuration.rows.items() if row.measured
    }


def write_report(configurations: Sequence[Configuration], results: Path, output: Path) -> list[Path]:
    """Write the page and its figures.

    Args:
        configurations: In their order on the page.
        results: Folder of all results, those of `train_on_card.py` included, which come first.
        output: The page. Figures go into a folder of its name.

    Returns:
        The files written.

    Raises:
        UserError: If a result was measured with other options than its configuration has, or there is no matplotlib.
    """
    parts, written = [_TITLE], [output]
    if (results / CARD).is_file():
        parts.append(advice.opening(read_json(results / CARD), read_json(results / LONGER)))
    for name, text in read_texts().items():
        if (summary := results / f'{name}.json').is_file():
            parts.append(page.section(read_json(summary), text))
    parts.append(_INTRODUCTION)
    for configuration in configurations:
        measured = load_results(configuration, results)
        parts.append(section(configuration, measured))
        if any(measured.values()):
            figure = output.with_suffix('') / f'{configuration.name}.svg'
            draw(configuration, measured, figure)
            parts.append(
                f'![Accuracy against FLOPs of every row]({output.stem}/{figure.name})\n')
            written.append(figure)
    write_text(output, '\n'.join(parts))
    return written


def section(configuration: Configuration, results: Results) -> str:
    """The part of the page about one configuration.

    Args:
        configuration: The configuration.
        results: As `load_results` reads them.

    Returns:
        Markdown.
    """
    lines = [f'## {configuration.title}', '', *(f'- {one}' for one in configuration.setting)]
    lines += [f'- {one}' for one in _how(configuration, results)]
    lines += ['', 'All of it: ' + _command(configuration), '']
    if not any(results.values()):
        return '\n'.join([*lines, 'Not measured yet.', ''])
    for table in TABLES:
        lines += _table(configuration, table, results)
    lines += _beyond(configuration, results)
    lines += routing_table(configuration, results)
    if configuration.findings:
        lines += ['### What was looked into', '', *(f'- {one}' for one in configuration.findings), '']
    return '\n'.join(lines)


def _how(configuration: Configuration, results: Results) -> list[str]:
    """What the results themselves say about how they were made."""
    found = [one for each in results.values() for one in each]
    total = sum(row.measured for row in configuration.rows.values()) * len(configuration.seeds)
    epochs = sorted({configuration.total_epochs(name) for name, row in configuration.rows.items() if row.measured})
    stages = sorted({
        ' + '.join(str(row.epochs) for row in configuration.chain(name))
        for name, row in configuration.rows.items() if row.measured})
    lines = [f'Epochs: {", ".join(map(str, epochs))} for every row ({", or ".join(stages)}).']
    if found:
        machines = sorted({_machine(one['machine']) for one in found})
        seconds = sum(one['seconds'] for one in found)
        versions = sorted({f'torch {v["torch"]}, timm {v["timm"]}' for v in (one['versions'] for one in found)})
        lines.append(f'Hardware: {"; ".join(machines)}; {"; ".join(versions)}.')
        lines.append(
            f'Measured: {len(found)} of {total} (row, seed), in {duration(seconds)} of training beside the pretrain'
            f' stages; {sum(one["starts"] > 1 for one in found)} trainings were interrupted and resumed.')
    return lines


def _machine(machine: Mapping[str, Any]) -> str:
    return machine['gpu'] or f'{machine["cores"]} cores of {machine["processor"]}'


def _command(configuration: Configuration, rows: Sequence[str] = ()) -> str:
    only = f' --rows {" ".join(rows)}' if rows else ''
    return (
        f'`python examples/reproduce/reproduce.py run examples/reproduce/{configuration.name}.yaml'
        f' --train-script train.py --data DATA --work WORK{only}`')


def _table(configuration: Configuration, table: Table, results: Results) -> list[str]:
    lines = [
        f'### Table {table.number}: {table.title}', '', *([table.remark, ''] if table.remark else ()),
        '| row | FLOPs, paper | top-1, paper | FLOPs, ours | top-1, ours | n |', '|---|---|---|---|---|---|']
    lines += [_row(paper, results) for paper in table.rows]
    lines += ['', '| claim | paper | ours | held? |', '|---|---|---|---|']
    lines += [_claim(claim, results) for claim in table.claims]
    names = {row.row for row in table.rows} | {row for claim in table.claims for row, _ in (claim.above, claim.below)}
    rows = [name for name in configuration.rows if name in names]
    return [*lines, '', 'Repeat: ' + _command(configuration, rows), '']


def _beyond(configuration: Configuration, results: Results) -> list[str]:
    """Accuracy at equal FLOPs."""
    asked = claims(configuration)
    if not asked:
        return []
    rows = [name for name in LABELS if name in configuration.rows]
    targets = configuration.rows['all-resolutions'].dial
    dialled = ' | '.join(f'at {target:g} GFLOPs' for target in targets)
    lines = [
        '### Beyond the paper: at equal FLOPs', '',
        'Top-1 as trained, and with the dial (`timm-drnet budget`) turned to averages that are the same for all rows.',
        '',
        f'| row | FLOPs as trained | top-1 as trained | {dialled} | n |',
        '|---' * (4 + len(targets)) + '|']
    for name in rows:
        found = results.get(name, ())
        cells = [
            _spread(sample(found, 'fraction'), 1), _spread(sample(found, 'top1'), 2),
            *(_spread(sample(found, 'top1', f'dial-{i}'), 2) for i in range(len(targets)))]
        lines.append(f'| {LABELS[name]} (`{name}`) | {" | ".join(cells)} | {len(found)} |')
    lines += ['', '| claim | paper | ours | held? |', '|---|---|---|---|']
    lines += [_claim(claim, results) for claim in asked]
    return [*lines, '', 'Repeat: ' + _command(configuration, rows), '']


def _row(paper: PaperRow, results: Results) -> str:
    measured = results.get(paper.row, ())
    top1, fraction = (sample(measured, quantity, paper.use) for quantity in ('top1', 'fraction'))
    cells = [
        f'{paper.label} (`{paper.row}`)', f'{paper.gflops} G = {100 * paper.fraction:.0f} %', f'{paper.top1:g} %',
        _spread(fraction, 1), _spread(top1, 2), str(len(measured))]
    return f'| {" | ".join(cells)} |'


def _spread(one: Sample | None, digits: int) -> str:
    if one is None:
        return NOT_MEASURED
    deviation = '' if one.std is None else f' ± {one.std:.{digits}f}'
    return f'{one.mean:.{digits}f}{deviation} %'


def _claim(claim: Claim, results: Results) -> str:
    unit = 'points of top-1' if claim.quantity == 'top1' else 'points of FLOPs'
    paper = '-' if claim.paper is None else f'{claim.paper:+.2f} {unit}'
    above, below = (
        sample(results.get(row, ()), claim.quantity, use) for row, use in (claim.above, claim.below))
    if above is None or below is None:
        ours, verdict = '', NOT_MEASURED
    else:
        found = compare(above, below)
        ours, verdict = f'{found.points:+.2f} ± {found.error:.2f}', f'**{found.verdict}**'
    return f'| {claim.text} | {paper} | {ours} | {verdict} |'
