"""Print a table of the JSON files of several runs of timm-drnet bench: medians over the runs, and their range.

Usage: python examples/summarize_benchmarks.py docs/benchmarks/drnet_resnet50-cpu-*.json
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

_HEAD = (
    'engine', 'batch', 'ms per image', 'time, of the backbone', 'FLOPs, of the backbone', 'time, of all branches',
    'throughput, of the first engine', 'routing')


def rows(reports: list[dict[str, Any]]) -> list[list[str]]:
    """One row for each engine and batch size.

    Args:
        reports: The JSON of each run, all of the same command.

    Returns:
        The cells.
    """
    found = []
    for engine in reports[0]['engines']:
        for i, first in enumerate(reports[0]['engines'][engine]):
            size = first['batch_size']
            runs = [report['engines'][engine][i] for report in reports]
            timings = [{row['name']: row for row in run['timings']} for run in runs]
            dynamic = [t['dynamic'] for t in timings]
            found.append([
                engine, str(size),
                _spread([row['milliseconds'] / size for row in dynamic], '.1f'),
                _spread([row['time_ratio'] for row in dynamic], '.3f'),
                f'{dynamic[0]["flops_ratio"]:.3f}',
                _spread([t['dynamic']['milliseconds'] / t['all branches']['milliseconds'] for t in timings], '.3f'),
                _spread([run['speedup'] for run in runs], '.2f'),
                _spread([100 * run['routing'] for run in runs], '.2f') + ' %',
            ])
    return found


def describe(reports: list[dict[str, Any]]) -> str:
    """What was measured, and on which machine."""
    machine = reports[0]['machine']
    versions = ', '.join(f'{name} {machine[name]}' for name in ('torch', 'onnxruntime', 'openvino') if name in machine)
    return (
        f'{len(reports)} {"runs" if len(reports) > 1 else "run"} of {reports[0]["model"]}, {machine["processor"]},'
        f' {machine["device"]}, {machine["threads"]} threads, {versions}')


def markdown(cells: list[list[str]]) -> str:
    """A table of rows."""
    lines = [f'| {" | ".join(row)} |' for row in cells]
    return '\n'.join([f'| {" | ".join(_HEAD)} |', f'|{"---|" * len(_HEAD)}', *lines])


def _spread(values: list[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f'{middle} ({min(values):{form}} to {max(values):{form}})'


def main() -> None:
    """Read the files named on the command line and print Markdown."""
    reports = [json.loads(Path(name).read_text(encoding='utf-8')) for name in sys.argv[1:]]
    if not reports:
        sys.exit('usage: summarize_benchmarks.py FILE.json ...')
    same = [{key: report[key] for key in ('model', 'mix', 'data', 'dtype')} for report in reports]
    if any(one != same[0] for one in same):
        sys.exit('summarize_benchmarks.py: these are not runs of the same command')
    print(f'{describe(reports)}\n\n{markdown(rows(reports))}')


if __name__ == '__main__':
    main()
