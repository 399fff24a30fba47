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
        for name, row in configuration.rows.items():
            top1, fraction = (sample(results.get(name, ()), quantity) for quantity in ('top1', 'fraction'))
            if top1 is None or fraction is None:
                continue
            axes.errorbar(
                fraction.mean, top1.mean, xerr=fraction.std, yerr=top1.std, fmt='s' if row.kind == 'backbone' else 'o',
                color='C1' if row.kind == 'backbone' else 'C0', capsize=2)
            axes.annotate(name, (fraction.mean, top1.mean), (5, 4), textcoords='offset points', fontsize=8)
        axes.set_xlabel("FLOPs in % of the backbone's at the largest size, predictor included")
        axes.set_ylabel('top-1 in %')
        axes.grid(alpha=0.3)
        axes.margins(x=0.12, y=0.12)
        buffer = io.StringIO()
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None})
    write_text(path, buffer.getvalue())
