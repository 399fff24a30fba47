"""Accuracy against measured time, as in Figure 3 of the paper: by each engine, at each batch size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cost.static_line import CurvePoint, static_line
from .bench import Benchmark, Timing
from .results import Results

_WIDTH = 6.4  # inches: with letters of this size it can be read on a telephone, too
_LETTERS = 11
_APART = 0.085
"""Between two labels at the margin, as a fraction of a panel's height."""


def plot_speed(benchmarks: Mapping[str, Sequence[Benchmark]], results: Results, path: str | Path, title: str) -> None:
    """Draw one panel for each batch size, one below the other.

    Each engine has a colour. Rings are the model held at each resolution, the line is what lots between them give, and
    the star is the model itself. Bars reach from the 10th to the 90th percentile of the times. Accuracies are those of
    the results, whatever the engine.

    Needs matplotlib.

    Args:
        benchmarks: Measurements by engine.
        results: The model's accuracies.
        path: Where to write, in a format that matplotlib knows by its suffix.
        title: Of the drawing.

    Raises:
        ValueError: If matplotlib does not know the format.
    """
    from matplotlib.figure import Figure

    sizes = sorted({one.batch_size for each in benchmarks.values() for one in each})
    rows = -(-len(benchmarks) // 2)  # of the legend
    figure = Figure(figsize=(_WIDTH, 1 + 0.22 * rows + 3.1 * len(sizes)), layout='constrained')
    panels = figure.subplots(len(sizes), 1, squeeze=False)[:, 0]
    for panel, size in zip(panels, sizes, strict=True):
        shown = {name: one for name, each in benchmarks.items() for one in each if one.batch_size == size}
        for i, name in enumerate(benchmarks):
            if name in shown:
                _draw(panel, shown[name], results, f'C{i}', name)
        _label_heights(panel, results)
        panel.set_title(f'batches of {size}' if size > 1 else 'single images', fontsize=_LETTERS, loc='left')
        panel.set_xscale('log')
        _label_times(panel)
        panel.tick_params(labelsize=_LETTERS - 1)
        panel.set_ylabel('top-1 in %', fontsize=_LETTERS)
        panel.grid(axis='x', alpha=0.3)
    panels[-1].set_xlabel('milliseconds per image', fontsize=_LETTERS)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=2, fontsize=_LETTERS - 1, frameon=False)
    figure.suptitle(f'{title}\n○ held at a resolution   ★ each image at its own', fontsize=_LETTERS)
    figure.savefig(path, dpi=200)


def _draw(panel: Any, one: Benchmark, results: Results, color: str, name: str) -> None:
    dynamic, *held, _ = one.timings
    heights = [row.held.top1 for row in results.validation.resolutions]
    points = [
        CurvePoint(timing.milliseconds / one.batch_size, top1) for timing, top1 in zip(held, heights, strict=True)]
    line = static_line(points)  # a zigzag through all of them would show noise
    panel.plot([p.gflops for p in line], [p.top1 for p in line], color=color, linewidth=1.5, alpha=0.7)
    for timing, top1 in zip(held, heights, strict=True):
        _point(panel, timing, one.batch_size, top1, color, marker='o', markersize=6, markerfacecolor='white')
    _point(
        panel, dynamic, one.batch_size, results.validation.dynamic.top1, color, marker='*', markersize=15,
        markeredgecolor='black', markeredgewidth=0.6, label=name)


def _point(panel: Any, timing: Timing, size: int, top1: float, color: str, **style: Any) -> None:
    x = timing.milliseconds / size
    low, high = min(timing.p10 / size, x), max(timing.p90 / size, x)
    panel.errorbar(
        [x], [top1], xerr=[[x - low], [high - x]], color=color, linestyle='', elinewidth=1.2, capsize=2, zorder=3,
        **style)


def _label_heights(panel: Any, results: Results) -> None:
    """Say at the margin which accuracy is whose, as it is the same for all engines, without one label on another."""
    heights = {f'{row.resolution} px': row.held.top1 for row in results.validation.resolutions}
    heights['dynamic'] = results.validation.dynamic.top1
    for top1 in heights.values():
        panel.axhline(top1, color='gray', linewidth=0.6, linestyle=':', zorder=0)
    bottom, top = min(heights.values()), max(heights.values())
    margin = 0.12 * (top - bottom) or 1
    panel.set_ylim(bottom - margin, top + margin)
    least = _APART * (top - bottom + 2 * margin)
    at = bottom - margin
    for label, top1 in sorted(heights.items(), key=lambda item: item[1]):
        at = max(at + least, top1)
        panel.annotate(
            label, (1, top1), (1.02, at), xycoords=panel.get_yaxis_transform(),
            textcoords=panel.get_yaxis_transform(), fontsize=_LETTERS - 1, va='center', annotation_clip=False,
            fontweight='bold' if label == 'dynamic' else 'normal')


def _label_times(panel: Any) -> None:
    """Whole numbers on the logarithmic axis, where matplotlib would write powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))
    panel.xaxis.set_minor_formatter(NullFormatter())
