"""Accuracy against FLOPs of one backbone: its static line, and what routers make of it."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rows import routed

from timm_drnet.cost.static_line import CurvePoint, static_line

ROUTERS = {
    'cascade untouched': ('cascade, untouched', 'C0', 'o-'),
    'cascade adapted': ('cascade, adapted', 'C2', '^--'),
    'predictor on utilities': ('predictor', 'C1', 'v:'),
}
"""By the beginning of their names: label, colour, and line."""


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw one backbone.

    Args:
        result: What `compare` measured.
        path: The SVG file to write; equal results give equal files.
    """
    held = [
        CurvePoint(100 * cost, top1, f'{side} px')
        for cost, top1, side in zip(result['relative'], result['held'], result['resolutions'], strict=True)]
    corners = static_line(held)
    with mpl.rc_context({'svg.hashsalt': result['name'], 'svg.fonttype': 'none', 'font.family': 'sans-serif'}):
        figure = Figure(figsize=(5, 3.6), layout='constrained')
        axes = figure.subplots()
        axes.plot([p.gflops for p in corners], [p.top1 for p in corners], '-', color='grey', label='static line')
        for point in held:
            axes.plot(point.gflops, point.top1, 's', color='grey')
            axes.annotate(
                point.name, (point.gflops, point.top1), (0, -16), textcoords='offset points', ha='center', color='grey')
        for start, (label, colour, line) in ROUTERS.items():
            rows = routed(result, start)
            if rows:
                costs, top1 = [100 * row['cost'] for row in rows], [row['top1'] for row in rows]
                axes.plot(costs, top1, line, color=colour, markersize=4, label=label)
        axes.set_xlabel("FLOPs in % of the backbone's at the largest size")
        axes.set_ylabel('top-1 in %')
        axes.margins(x=0.1, y=0.15)  # room for the label of the smallest
        axes.grid(alpha=0.3)
        axes.legend(loc='lower right', frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(buffer.getvalue(), encoding='utf-8')
