"""The page of an analysis: one HTML file that needs no network, and says of each figure what it shows."""

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluate.prediction import format_flops
from .charts import Chart, Series
from .choices import Analysis

_TEMPLATE = Path(__file__).parent / 'template'


def render_page(analysis: Analysis, **names: Any) -> str:
    """Fill the template.

    Args:
        analysis: The analysis.
        names: What ``page.html`` asks for beside it. Markup in them has no effect; what a reader would not see in them
            must have been escaped.

    Returns:
        An HTML document.
    """
    script = (_TEMPLATE / 'sort.js').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    sizes = [f'{row.resolution}\xa0px' for row in analysis.validation.resolutions]
    colours = [f's{j % 5}' for j in range(len(sizes))]
    ways = _ways(analysis)
    return _environment().get_template('page.html').render(
        analysis=analysis, sizes=sizes, colours=colours, ways=ways, cost_chart=_cost_chart(ways),
        curve_chart=_curve_chart(analysis, ways[0]), reliability_chart=_reliability_chart(analysis),
        script=script, digest=digest, **names)


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters.update(
        count=lambda number, noun, plural=None: f'{number:,} {noun if number == 1 else plural or noun + "s"}',
        fixed=lambda value, decimals=0: f'{value:,.{decimals}f}',
        flops=lambda gflops: format_flops(1e9 * gflops).replace(' ', '\xa0'),
        parts=lambda name: re.split('(?<=[._/])', name),
        percent=lambda value, decimals=2: f'{value:.{decimals}f}\xa0%',
        share=lambda value, decimals=1: f'{100 * value:.{decimals}f}\xa0%',
        signed=lambda value: f'{value:+.2f}'.replace('-', '\u2212'))
    return environment


class _Way(NamedTuple):
    """One way to choose resolutions."""

    name: str
    shape: str
    top1: float
    gflops: float
    fraction: float
    std: float | None = None


def _ways(analysis: Analysis) -> list[_Way]:
    validation, oracle = analysis.validation, analysis.validation.oracle
    dynamic, drawn = validation.dynamic, validation.random.mean
    return [
        _Way('Dynamic', 'star', dynamic.top1, dynamic.gflops, dynamic.fraction),
        *(_Way(f'Held at {row.resolution}\xa0px', 'circle', row.held.top1, row.held.gflops, row.held.fraction)
          for row in validation.resolutions),
        _Way('Lots at the same shares', 'square', drawn.top1, drawn.gflops, drawn.fraction, validation.random.std.top1),
        _Way('Oracle with router', 'triangle', oracle.top1, oracle.gflops_with_router, oracle.fraction_with_router),
        _Way('Oracle', 'open-triangle', oracle.top1, oracle.gflops, oracle.fraction),
    ]


def _cost_chart(ways: Sequence[_Way]) -> Chart:
    held = [way for way in ways if way.shape == 'circle']
    return Chart([
        Series('Held at one size', 'circle', [(way.gflops, way.top1) for way in held],
               [way.name.removeprefix('Held at ') for way in held], joined=True),
        *(Series(way.name, way.shape, [(way.gflops, way.top1)], error=way.std or 0.0)
          for way in reversed(ways) if way not in held),
    ], 'GFLOPs per image', 'images right, %')


def _curve_chart(analysis: Analysis, dynamic: _Way) -> Chart:
    curve = analysis.curve
    return Chart([
        Series('Static line', 'circle', [(point.gflops, point.top1) for point in curve.static],
               [point.name for point in curve.static], joined=True),
        Series('All budgets', 'budgets', [(point.gflops, point.top1) for point in curve.budgets], joined=True),
        Series(dynamic.name, dynamic.shape, [(dynamic.gflops, dynamic.top1)]),
    ], 'GFLOPs per image', 'images right, %')


def _reliability_chart(analysis: Analysis) -> Chart:
    points = [
        (100 * one.probability, 100 * one.frequency, f'{one.count:,}') for one in analysis.calibration.bins
        if one.probability is not None and one.frequency is not None]
    event = 'answer is right' if analysis.validation.router == 'cascade' else 'choice is that of the oracle'
    sure = 'answer' if analysis.validation.router == 'cascade' else 'chosen size'
    return Chart([
        Series('As often as it says', 'ideal', [(0, 0), (100, 100)], joined=True),
        Series('Images', 'dot', [(x, y) for x, y, _ in points], [count for _, _, count in points]),
    ], f'probability of the {sure}, %', f'{event}, %', x_limit=100.0)
