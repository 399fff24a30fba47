"""Charts of points: where their marks and the names beside them stand. The page's template draws them.

Lengths are in units of the drawing. It is narrow, so that its letters can still be read on a telephone.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

_LEFT, _RIGHT, _TOP, _BOTTOM, _EDGE = 50, 384, 12, 248, 400
"""Sides of the frame of the axes, and the right edge of the drawing."""

_LETTER, _LINE, _MARK, _GAP = 8.4, 15, 8, 3
"""Width of a letter in a wide font, height of a line, half the size of a mark, and what a name keeps clear of lines."""

_AROUND = ((1, 1), (-1, -1), (1, 0), (-1, 0), (1, -1), (-1, 1), (0, 1), (0, -1))
"""Where a name may stand, seen from its point; the first are clear of a line that rises from the left."""

_Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Series:
    """Points of one kind."""

    name: str
    """Shown where the mouse rests on a mark."""
    style: str
    """Of its marks or its line: a name that the template knows."""
    points: Sequence[tuple[float, float]]
    """Each x and y."""
    labels: Sequence[str] = ()
    """Beside each point, or none."""
    joined: bool = False
    """Whether a line joins the points."""
    error: float = 0.0
    """Half the height of an error bar at each point, or 0 for none."""


@dataclass(frozen=True)
class Scale:
    """An axis, from the first tick to the last."""

    ticks: Sequence[float]
    """Round numbers, evenly spaced."""
    start: float
    """Where the first of them stands."""
    end: float
    """Where the last of them stands."""

    def __call__(self, value: float) -> float:
        """Where a value stands."""
        return self.start + (self.end - self.start) * (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    def marks(self) -> list[tuple[float, str]]:
        """Where each tick stands, and its number, with as many decimals as the others."""
        step = self.ticks[1] - self.ticks[0]
        decimals = next(d for d in range(13) if abs(round(step, d) - step) < step * 1e-6)
        return [(self(tick), f'{tick:.{decimals}f}') for tick in self.ticks]


class Chart:
    """A chart whose axes fit its points.

    Args:
        series: What to draw, with y in per cent; later ones lie on top.
        x_name: Of the horizontal axis.
        y_name: Of the vertical axis.
        x_limit: The largest x there can be.
    """

    def __init__(self, series: Sequence[Series], x_name: str, y_name: str, x_limit: float = math.inf) -> None:
        self.series, self.x_name, self.y_name = series, x_name, y_name
        xs = [x for one in series for x, _ in one.points]
        ys = [y + sign * one.error for one in series for _, y in one.points for sign in (-1, 1)]
        self.x = Scale(_fitting_ticks(xs, 0.05 * max(xs) or 1.0, x_limit), _LEFT, _RIGHT)
        self.y = Scale(_fitting_ticks(ys, 0.5, 100.0), _BOTTOM, _TOP)

    def labels(self) -> list[tuple[float, float, str]]:
        """Where the middle of each name stands, clear of marks, lines and other names, and the name.

        One for which there is no room is left out, so it must stand elsewhere on the page as well.
        """
        taken: list[_Box] = []
        for one in self.series:
            places = [(self.x(x), self.y(y)) for x, y in one.points]
            taken += [_box(x, y, _MARK, _MARK) for x, y in places]
            half = self.y(0) - self.y(one.error)
            lines = list(itertools.pairwise(places)) if one.joined else []
            lines += [((x, y - half), (x, y + half)) for x, y in places if one.error]
            for (x0, y0), (x1, y1) in lines:
                steps = math.ceil(math.hypot(x1 - x0, y1 - y0) / _GAP) or 1
                taken += [_box(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, _GAP, _GAP)
                          for i in range(steps + 1)]
        found = []
        for one in self.series:
            for (x, y), text in zip(one.points, one.labels, strict=False):
                half = _LETTER * len(text) / 2
                for distance, (right, down) in itertools.product((0, 8), _AROUND):
                    across = self.x(x) + right * (half + _MARK + distance) * (0.7 if down else 1)
                    upright = self.y(y) + down * (_LINE / 2 + _MARK + distance)
                    box = _box(across, upright, half, _LINE / 2)
                    inside = box[0] > _LEFT and box[1] > _TOP and box[2] < _EDGE and box[3] < _BOTTOM
                    if inside and not any(_overlap(box, other) for other in taken):
                        taken.append(box)
                        found.append((across, upright, text))
                        break
        return found


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round numbers from one not above ``low`` to one not below the larger ``high``, about so many steps apart."""
    raw = (high - low) / number
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if raw <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _fitting_ticks(values: Sequence[float], margin: float, highest: float) -> list[float]:
    """Ticks that leave a margin around all values, within 0 and the highest value there can be."""
    margin = max(margin, 0.08 * (max(values) - min(values)))
    return ticks(max(min(values) - margin, 0), min(max(values) + margin, highest))


def _box(x: float, y: float, half_width: float, half_height: float) -> _Box:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
