"""Write the tables of docs/speed.md from the JSON files in docs/benchmarks, three runs of each command.

Usage: python examples/write_speed_page.py

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``. ``NAME-1.json``, ``NAME-2.json`` and so on are the runs;
the table ``targets`` holds them against what was aimed at, ``reading`` is of benchmark_reading.py, and
``convolutions-...`` of compare_convolutions.py.
"""

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from summarize_benchmarks import describe, markdown, rows

_ROOT = Path(__file__).parents[1]
_PAGE = _ROOT / 'docs' / 'speed.md'
_BENCHMARKS = _ROOT / 'docs' / 'benchmarks'

_RESNET, _CASCADE, _SHIPPED = 'drnet_resnet50-xeon', 'drnet_resnet50-cascade-xeon', 'drnet_efficientnet_lite0-xeon'
_TARGETS = [
    # runs, engine, batch, what, least or most
    (_RESNET, 'openvino-int8', 32, 'time', 0.70),
    (_RESNET, 'openvino-int8', 32, 'throughput', 4.5),
    (_RESNET, 'openvino-bf16', 32, 'time', 0.68),
    (_RESNET, 'openvino-bf16', 32, 'throughput', 2.2),
    (_RESNET, 'deployed-bf16', 32, 'throughput', 1.8),
    (_RESNET, 'openvino-int8', 1, 'time', 0.75),
    *((_CASCADE, engine, 32, 'time above FLOPs', 0.05) for engine in (
        'eager', 'deployed', 'deployed-bf16', 'onnxruntime', 'onnxruntime-int8', 'openvino', 'openvino-bf16',
        'openvino-int8')),
    (_SHIPPED, 'deployed', 32, 'time', 0.80),
    (_SHIPPED, 'onnxruntime', 32, 'time', 0.80),
]
_TOLD = {
    'time': "at most {limit:.2f} of the backbone's time in the same engine",
    'throughput': "at least {limit:.1f} times eager float32's throughput",
    'time above FLOPs': "time at most {limit:.2f} above the FLOPs, both of the backbone's",
}


def targets() -> str:
    """What was aimed at beside what was measured, as Markdown."""
    lines = ['| model | engine | batch | aim | measured | reached |', '|---|---|---|---|---|---|']
    for name, engine, size, what, limit in _TARGETS:
        runs = [
            one for report in _reports(name) for one in report['engines'].get(engine, ()) if one['batch_size'] == size]
        if not runs:
            lines.append(f'| {name} | {engine} | {size} | {_TOLD[what].format(limit=limit)} | not yet | |')
            continue
        values = [_value(one, what) for one in runs]
        middle = statistics.median(values)
        reached = middle >= limit if what == 'throughput' else middle <= limit
        shown = ', '.join(f'{value:.3f}' if what != 'throughput' else f'{value:.2f}' for value in values)
        lines.append(
            f'| {name} | {engine} | {size} | {_TOLD[what].format(limit=limit)} | {shown} |'
            f' {"yes" if reached else "**no**"} |')
    return '\n'.join(lines)


def reading(reports: Sequence[dict[str, Any]]) -> str:
    """The way from JPEG files to labels, as Markdown: medians of the runs.

    Args:
        reports: Of benchmark_reading.py, with the same sizes, engines and ways.
    """
    first = reports[0]
    runs = '' if len(reports) == 1 else f', and of {len(reports)} runs'
    lines = [
        f'{first["model"]}, {first["workers"]} workers on {first["machine"]}; medians of {first["repeats"]}'
        f' repeats{runs}.',
        '',
        '| photographs | engine | pipeline | images per second per core | time, of plain decoded whole |',
        '|---|---|---|---|---|']
    for size, found in first['sizes'].items():
        for engine, ways in found['engines'].items():
            for way in ways:
                rows = [report['sizes'][size]['engines'][engine][way] for report in reports]
                rate, ratio = (
                    statistics.median(row[what] for row in rows) for what in ('images_per_second_per_core', 'ratio'))
                lines.append(f'| {size} | {engine} | {way} | {rate:.1f} | {ratio:.2f} |')
    return '\n'.join(lines)


def convolutions(reports: Sequence[dict[str, Any]]) -> str:
    """What oneDNN's fused convolutions bring to the deployed model, as Markdown: each run's ratio.

    Args:
        reports: Of compare_convolutions.py, with the same models, types and sizes.
    """
    machine = reports[0]['machine']
    lines = [
        f'{machine["processor"]}, {machine["threads"]} threads, torch {machine["torch"]}; runs: {len(reports)}.',
        '',
        "| model | type | batch | ms per image | PyTorch's own, times as long | packed at each call, times as long |",
        '|---|---|---|---|---|---|']
    for same in zip(*(report['rows'] for report in reports), strict=True):
        own, each, fused = (
            [row['milliseconds'][side] for row in same]
            for side in ("PyTorch's own", 'oneDNN, packed at each call', 'oneDNN'))
        first = same[0]
        lines.append(
            f'| {first["model"]} | {first["dtype"]} | {first["batch_size"]} | {statistics.median(fused):.1f} |'
            f' {_times(own, fused)} | {_times(each, fused)} |')
    return '\n'.join(lines)


def _times(slow: Sequence[float], fast: Sequence[float]) -> str:
    """How many times as long: the median of the runs and their range."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'


def _value(one: dict[str, Any], what: str) -> float:
    dynamic = one['timings'][0]
    found = {
        'time': dynamic['time_ratio'], 'throughput': one['speedup'],
        'time above FLOPs': dynamic['time_ratio'] - dynamic['flops_ratio']}
    return float(found[what])


def _reports(name: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding='utf-8')) for path in sorted(_BENCHMARKS.glob(f'{name}-[0-9]*.json'))]


def _table(name: str) -> str:
    if name == 'targets':
        return targets()
    reports = _reports(name)
    if name == 'reading' and reports:
        return reading(reports)
    if name.startswith('convolutions-'):
        return convolutions(reports) if reports else 'Not measured yet.'
    if not reports:
        sys.exit(f'write_speed_page.py: there is no {_BENCHMARKS / name}-1.json')
    return f'{describe(reports)}\n\n{markdown(rows(reports))}'


def main() -> None:
    """Rewrite the page."""
    page = _PAGE.read_text(encoding='utf-8')
    page = re.sub(
        r'<!-- ([\w-]+) -->\n.*?<!-- end -->', lambda found: f'<!-- {found[1]} -->\n{_table(found[1])}\n<!-- end -->',
        page, flags=re.DOTALL)
    _PAGE.write_text(page, encoding='utf-8')


if __name__ == '__main__':
    main()
