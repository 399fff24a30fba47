"""Print the table of a run of benchmark_cuda.py.

Usage: python examples/summarize_cuda.py docs/benchmarks/cuda-h100.jsonl
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WAYS = {
    'plain': 'plain backbone, 224 px', 'routed': 'routed', 'deployed': 'routed, `deploy()`',
    'branches apart': 'its branches alone', 'predictor': 'its predictor alone', 'cascade': 'cascade',
    'held at 224': 'all images at 224 px', 'held at 168': 'all at 168 px', 'held at 112': 'all at 112 px',
    'deployed, held': 'all at 224 px, `deploy()`',
}
STAGES = {'plain': 'plain backbone', 'pretrain': 'pretrain stage', 'joint': 'joint stage, from its start'}


def table(results: Mapping[str, Any]) -> str:
    """Times beside those of the plain backbone.

    Args:
        results: Of the steps, by name.

    Returns:
        Markdown.
    """
    size = results['about']['batch_size']
    inference, compiled = results['inference, bfloat16'], results['compiled: routed beside plain']
    training = results['training, float16 with a scaler']
    course = results['joint training, bfloat16, part by part']
    rows = [('inference, bfloat16', text, inference[way]['ms'], inference['plain']['ms']) for way, text in WAYS.items()]
    plain = compiled['plain']['ms']
    rows += [('the same, compiled', WAYS[way], compiled[way]['ms'], plain) for way in ('plain', 'routed')]
    for name, result in results.items():
        part = name.removeprefix('compiled: ')
        if part not in (name, 'plain', 'routed beside plain'):
            rows.append(('the same, compiled', f'its {part}{" px" if " at " in part else ""}', result['ms'], plain))
    rows += [('training, float16', text, training[stage]['ms'], training['plain']['ms'])
             for stage, text in STAGES.items()]
    lines = [
        f'{size} images, {results["about"]["device"]}, torch {results["about"]["torch"]}; medians.', '',
        '| | | ms | of the plain backbone |', '|---|---|---|---|',
        *(f'| {what} | {text} | {ms:.1f} | {ms / plain:.2f} |' for what, text, ms, plain in rows), '',
        f'A joint stage in bfloat16, medians of {course["updates of each"]} steps each, one after another, in ms:'
        f' {", ".join(f"{ms:.0f}" for ms in course["ms"])}.']
    return '\n'.join(lines)


def main() -> None:
    """Read the file named on the command line and print Markdown."""
    if len(sys.argv) != 2:
        sys.exit('usage: summarize_cuda.py FILE.jsonl')
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding='utf-8').splitlines()]
    print(table({row['step']: row['result'] for row in rows if 'result' in row}))


if __name__ == '__main__':
    main()
