"""Accuracy against measured time, as in Figure 3 of the paper."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .bench import Benchmark
from .results import Results


def plot_speed(benchmarks: Mapping[str, Sequence[Benchmark]], results: Results, path: str | Path, title: str) -> None:
    """Draw one panel for each batch size: the model, and the model held at each resolution, by every engine.

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
    held = [row.held.top1 for row in results.validation.resolutions]
    figure = Figure(figsize=(1 + 4 * len(sizes), 4), layout='constrained')
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for panel, size in zip(panels, sizes, strict=True):
        for i, (engine, each) in enumerate(benchmarks.items()):
            for one in each:
                if one.batch_size != size:
                    continue
                dynamic, *others, _ = (timing.milliseconds / size for timing in one.timings)
                color = f'C{i}'
                panel.plot(others, held, color=color, marker='o', fillstyle='none', label=f'{engine}, held')
                panel.plot(
                    [dynamic], [results.validation.dynamic.top1], color=color, marker='*', markersize=13, linestyle='',
                    label=f'{engine}, dynamic')
                for resolution, x, y in zip(results.validation.resolutions, others, held, strict=True):
                    panel.annotate(f'{resolution.resolution}', (x, y), (4, -10), textcoords='offset points', fontsize=7)
        panel.set_title(f'batch {size}')
        panel.set_xlabel('ms per image')
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel('top-1 in %')
    panels[-1].legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
