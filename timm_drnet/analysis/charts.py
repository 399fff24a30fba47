"""Charts as SVG, written by hand: they take their colours from the page, and need nothing but a browser.

They are narrow, so that their letters can still be read on a telephone. All text is escaped here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 44
_INNER = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM


@dataclass(frozen=True)
class Series:
    """Points of one kind in a scatter plot."""

    name: str
    """For the legend."""
    shape: str
    """One of `SHAPES`."""
    points: tuple[tuple[float, float], ...]
    """Each x and y."""
    labels: tuple[str, ...] = ()
    """Beside each point, or none."""
    joined: bool = False
    """Whether a line joins the points."""
    error: float = 0.0
    """Half the height of an error bar at each point, or 0 for none."""


SHAPES = {
    'circle': '<circle r="5"/>',
    'star': '<path d="M0-8 2.2-2.8 7.8-2.5 3.5 1.1 4.9 6.6 0 3.5-4.9 6.6-3.5 1.1-7.8-2.5-2.2-2.8z"/>',
    'square': '<rect x="-4.5" y="-4.5" width="9" height="9"/>',
    'triangle': '<path d="M0-6.5 6 5H-6z"/>',
    'open-triangle': '<path d="M0-6.5 6 5H-6z"/>',
}


def marker(shape: str) -> str:
    """The mark of a series alone, for a legend beside a chart."""
    return (f'<svg class="key" viewBox="-9 -9 18 18" width="18" height="18" aria-hidden="true">'
            f'<g class="mark {shape}">{SHAPES[shape]}</g></svg>')


def scatter(series: Sequence[Series], title: str, x_name: str, y_name: str) -> str:
    """Draw points.

    Args:
        series: What to draw, with y in per cent; later ones lie on top.
        title: What the chart shows, for those who cannot see it.
        x_name: Of the horizontal axis, which begins at 0.
        y_name: Of the vertical axis.

    Returns:
        An SVG element.
    """
    xs = [x for one in series for x, _ in one.points]
    ys = [y + sign * one.error for one in series for _, y in one.points for sign in (-1, 1)]
    x_ticks = ticks(0, max(xs) * 1.06)
    margin = max((max(ys) - min(ys)) * 0.1, 0.5)
    y_ticks = ticks(max(min(ys) - margin, 0), min(max(ys) + margin, 100))

    def place(x: float, y: float) -> tuple[float, float]:
        return (_LEFT + _INNER[0] * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]),
                _TOP + _INNER[1] * (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]))

    parts = [_axes([(place(x, y_ticks[0])[0], _number(x, x_ticks)) for x in x_ticks],
                   [(place(x_ticks[0], y)[1], _number(y, y_ticks)) for y in y_ticks], x_name, y_name)]
    texts: list[str] = []  # on top of lines
    for one in series:
        places = [place(x, y) for x, y in one.points]
        if one.joined:
            parts.append(f'<polyline class="join" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        for i, (x, y) in enumerate(places):
            if one.error:
                half = place(0, 0)[1] - place(0, one.error)[1]
                bar = f'M{x:.1f} {y - half:.1f}V{y + half:.1f}m-4 0h8m-8 {-2 * half:.1f}h8'
                parts.append(f'<path class="error" d="{bar}"/>')
            parts.append(f'<g class="mark {one.shape}" transform="translate({x:.1f} {y:.1f})">'
                         f'<title>{escape(one.name)}</title>{SHAPES[one.shape]}</g>')
            if one.labels:
                texts.append(f'<text class="halo" x="{x:.1f}" y="{y + 19:.1f}" text-anchor="middle">'
                             f'{escape(one.labels[i])}</text>')
    parts += texts
    return _svg(_WIDTH, _HEIGHT, title, parts)


def reliability(bins: Sequence[tuple[float, float, int, float, float]], title: str, x_name: str, y_name: str) -> str:
    """Draw a reliability diagram: a bar for each bin, a line where all of them should end.

    Args:
        bins: Of those that are not empty: lower end, upper end, count, average probability, frequency.
        title: What the chart shows, for those who cannot see it.
        x_name: Of the probability.
        y_name: Of the frequency.

    Returns:
        An SVG element.
    """
    width, height = _INNER
    steps = [i / 5 for i in range(6)]
    parts = [_axes([(_LEFT + width * s, f'{100 * s:.0f}') for s in steps],
                   [(_TOP + height * (1 - s), f'{100 * s:.0f}') for s in steps], x_name, y_name)]
    counts = []
    for low, high, count, probability, frequency in bins:
        x, y = _LEFT + width * low, _TOP + height * (1 - frequency)
        parts.append(f'<rect class="bar" x="{x + 1:.1f}" y="{y:.1f}" width="{width * (high - low) - 2:.1f}"'
                     f' height="{height * frequency:.1f}"><title>{count} images: {100 * probability:.1f} % expected,'
                     f' {100 * frequency:.1f} % found</title></rect>')
        counts.append(f'<text class="on s1" x="{x + width * (high - low) / 2:.1f}" y="{_TOP + height - 7}"'
                      f' text-anchor="middle">{count}</text>')
    parts.append(f'<path class="ideal" d="M{_LEFT} {_TOP + height}L{_LEFT + width} {_TOP}"/>')
    for _, _, _, probability, frequency in bins:
        parts.append(f'<circle class="mark dot" r="3.5" cx="{_LEFT + width * probability:.1f}"'
                     f' cy="{_TOP + height * (1 - frequency):.1f}"/>')
    return _svg(_WIDTH, _HEIGHT, title, parts + counts)


def stacked_bars(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], title: str) -> str:
    """Draw one bar of full width for each row, cut into shares; shares of some width are labelled inside.

    Args:
        rows: Each a name above the bar, or none, and its segments: label, share, CSS class.
        title: What the chart shows, for those who cannot see it.

    Returns:
        An SVG element.
    """
    width, bar, name_height, gap = _WIDTH, 30, 18, 12
    parts, y = [], 0
    for name, segments in rows:
        if name:
            parts.append(f'<text x="0" y="{y + 12}">{escape(name)}</text>')
            y += name_height
        x = 0.0
        for label, share, style in segments:
            length = width * share
            if length:
                parts.append(f'<rect class="segment {style}" x="{x + 0.5:.1f}" y="{y + 0.5}"'
                             f' width="{max(length - 1, 0.5):.1f}" height="{bar - 1}">'
                             f'<title>{escape(label)}: {100 * share:.1f} %</title></rect>')
            text = f'{label} {100 * share:.0f} %'
            if length > 6.6 * len(text) + 8:
                parts.append(f'<text class="on {style}" x="{x + length / 2:.1f}" y="{y + bar / 2 + 4:.1f}"'
                             f' text-anchor="middle">{escape(text)}</text>')
            x += length
        y += bar + gap
    return _svg(width, y - gap, title, parts)


def share_strip(shares: Sequence[tuple[float, str]]) -> str:
    """A small bar without words, cut into shares (of 1), each with a CSS class; the numbers must stand beside it."""
    parts, x = [], 0.0
    for share, style in shares:
        if share:
            parts.append(f'<rect class="segment {style}" x="{x:.2f}" y="0" width="{100 * share:.2f}" height="12"/>')
        x += 100 * share
    return (f'<svg class="strip" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
            f'{"".join(parts)}</svg>')


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round numbers from one not above ``low`` to one not below ``high``, about so many steps apart.

    Args:
        low: The lower end.
        high: The upper end, above the lower one.
        number: Of steps that would be best.

    Returns:
        The ticks.
    """
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float, all_ticks: Sequence[float]) -> str:
    """A tick as short as it can be, with as many decimals as the others."""
    step = all_ticks[1] - all_ticks[0]
    decimals = next(d for d in range(13) if abs(round(step, d) - step) < step * 1e-6)
    return f'{value:.{decimals}f}'


def _axes(
        x_ticks: Sequence[tuple[float, str]],
        y_ticks: Sequence[tuple[float, str]],
        x_name: str,
        y_name: str,
) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    lines = ''.join(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>' for y, _ in y_ticks)
    x_text = ''.join(f'<text class="small" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>'
                     for x, text in x_ticks)
    y_text = ''.join(f'<text class="small" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
                     for y, text in y_ticks)
    middle = _TOP + _INNER[1] / 2
    return (
        f'{lines}<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>{x_text}{y_text}'
        f'<text x="{_LEFT + _INNER[0] / 2:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_name)}</text>'
        f'<text transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(y_name)}</text>')


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
            f'{"".join(parts)}</svg>')
