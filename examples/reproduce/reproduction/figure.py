"""Accuracy against FLOPs, all rows of a configuration in one drawing."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .comparison import sample
from .configuration import Configuration, UserError
from .files import write_text


def draw(configuration: Configuration, results: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw every measured row as a point, with its deviation over seeds.

    Args:
        configuration: The configuration.
        results: By row, one for each seed.
        path: The SVG file to write; equal results give equal files.

    Raises:
        UserError: If there is no matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('report needs matplotlib: pip install "timm-drnet[plot]"') from error

    with mpl.rc_context({'svg.hashsalt': configuration.name, 'svg.fonttype': 'none', 'font.family': 'sans-serif'}):
        figure = Figure(figsize=(7, 4.5), layout='constrained')
        axes = figure.subplots()
        points = {}
        for name, row in configuration.rows.items():
            top1, fraction = (sample(results.get(name, ()), quantity) for quantity in ('top1', 'fraction'))
            if top1 is None or fraction is None:
                continue
            axes.errorbar(
                fraction.mean, top1.mean, xerr=fraction.std, yerr=top1.std, fmt='s' if row.kind == 'backbone' else 'o',
                color='C1' if row.kind == 'backbone' else 'C0', capsize=2)
            points[name] = (fraction.mean, top1.mean)
        axes.set_xlabel("FLOPs in % of the backbone's at the largest size, predictor included")
        axes.set_ylabel('top-1 in %')
        axes.grid(alpha=0.3)
        axes.margins(x=0.12, y=0.12)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for name, height in label_heights(points, 0.08 * (right - left), 0.035 * (top - bottom)).items():
            x, y = points[name]
            axes.annotate(
                name, (x, y), (x + 0.015 * (right - left), height), fontsize=8, va='bottom',  # above the error bar
                arrowprops={'arrowstyle': '-', 'linewidth': 0.5, 'color': 'grey', 'shrinkA': 0, 'shrinkB': 0})
        buffer = io.StringIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
    write_text(path, buffer.getvalue())


def label_heights(points: Mapping[str, tuple[float, float]], near: float, gap: float) -> dict[str, float]:
    """Where the labels stand beside their points: as high as these, unless they would cover each other.

    Args:
        points: By label.
        near: Points that differ by less in x may disturb each other's labels.
        gap: Difference in y that two labels need.

    Returns:
        y of each label.
    """
    heights: dict[str, float] = {}
    groups: list[list[str]] = []
    for name in sorted(points, key=lambda name: points[name][1]):
        group = next((g for g in groups if abs(points[g[-1]][0] - points[name][0]) < near
                      and points[name][1] - heights[g[-1]] < gap), None)
        if group is None:
            groups.append([name])
            heights[name] = points[name][1]
        else:
            heights[name] = heights[group[-1]] + gap
            group.append(name)
    for group in groups:  # half of what was moved up goes down again
        moved = sum(heights[name] - points[name][1] for name in group) / len(group)
        heights.update({name: heights[name] - moved for name in group})
    return heights
