"""What the paper does not have: a joint stage at all resolutions, and the dial, held against the paper's recipe."""

from collections.abc import Mapping, Sequence
from typing import Any

from .configuration import Configuration
from .paper import Claim

LABELS = {
    'drnet': 'the paper, without FLOPs loss',
    'alpha-2.0': 'the paper, alpha = 2.0',
    'all-resolutions': 'trained at all resolutions, alpha = 2.0',
}
"""Rows in the order of the table."""


def claims(configuration: Configuration) -> list[Claim]:
    """What is asked, for the rows and targets that a configuration has.

    Args:
        configuration: The configuration.

    Returns:
        The claims; all but the first two are of accuracy at equal FLOPs.
    """
    if 'all-resolutions' not in configuration.rows:
        return []
    ours = configuration.rows['all-resolutions']
    found = [
        Claim('As trained, training at all resolutions is more accurate than the paper without FLOPs loss.', 'top1',
              ('all-resolutions', 'dynamic'), ('drnet', 'dynamic'), None),
        Claim('As trained, it costs less.', 'fraction', ('drnet', 'dynamic'), ('all-resolutions', 'dynamic'), None),
    ]
    for i, target in enumerate(ours.dial):
        for other in ('alpha-2.0', 'drnet'):
            found.append(Claim(
                f'Training at all resolutions beats {LABELS[other]}, by the dial at {target:g} GFLOPs.', 'top1',
                ('all-resolutions', f'dial-{i}'), (other, f'dial-{i}'), None))
    return found


def shares(result: Mapping[str, Any]) -> str:
    """Where one model sends the images, such as ``0/100/0``, in per cent from the largest resolution on."""
    return '/'.join(f'{100 * row["share"]:.0f}' for row in result['validation']['resolutions'])


def held(result: Mapping[str, Any]) -> str:
    """The accuracy of one model held at each resolution, such as ``36.1/35.0/29.8``, in per cent."""
    return '/'.join(f'{row["held"]["top1"]:.1f}' for row in result['validation']['resolutions'])


def routing_table(configuration: Configuration, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Where every model sends the images, and how accurate it is when held at each resolution.

    Args:
        configuration: The configuration.
        results: By row, one for each seed.

    Returns:
        Lines of Markdown.
    """
    rows = [name for name, row in configuration.rows.items() if row.kind == 'drnet' and results.get(name)]
    if not rows:
        return []
    lines = [
        '### Where the images went', '',
        'In per cent of the validation images, from the largest resolution to the smallest, one entry for each seed;'
        ' and the top-1 accuracy when all images are held at that resolution.', '',
        '| row | shares | held |', '|---|---|---|']
    for name in rows:
        cells = [', '.join(map(cell, results[name])) for cell in (shares, held)]
        lines.append(f'| `{name}` | {" | ".join(cells)} |')
    return [*lines, '']
