"""What commands print: results, tables, and errors; names that a terminal cannot show are escaped everywhere."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class UserError(Exception):
    """Bad input, to be told in one line that names the argument, the value and the remedy."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    """Its heading."""
    format: str | None = None
    """Of its numbers, such as ``.2f``; None for a column of text."""
    unit: str = ''
    """Behind each number."""


def printable(text: str) -> str:
    r"""Escape what a terminal cannot show: control characters, and bytes of a file name that are no text.

    Args:
        text: Any text.

    Returns:
        One line, without anything that could act on the terminal.

    Examples:
        >>> print(printable('holiday\x1b[2J\n.jpg'))
        holiday\x1b[2J\n.jpg
    """
    from ..data import pixels  # needs Pillow and NumPy, which --help can do without

    return pixels.printable(text)


def show(*lines: str) -> None:
    """Print lines of a result at once, escaped.

    Args:
        *lines: Without line breaks: one within a line comes from a name, and is escaped.
    """
    print('\n'.join(map(printable, lines)), flush=True)


def tell(command: str, text: str) -> None:
    """Print a line on the standard error stream, escaped.

    Args:
        command: The command that says it; empty for ``timm-drnet`` itself.
        text: What it says.
    """
    print(printable(f'{f"timm-drnet {command}".rstrip()}: {text}'), file=sys.stderr)


def table(columns: Sequence[Column], rows: Iterable[Sequence[str | float | None]]) -> list[str]:
    """Lay out a table: text to the left, numbers to the right with their units.

    Args:
        columns: Its columns.
        rows: A value for each column: a number, or text that is shown as it is; None is shown as a dash.

    Returns:
        Its lines, the headings first.

    Examples:
        >>> for line in table([Column('resolution', '.0f', 'px'), Column('kind')], [(64, 'small'), (224, None)]):
        ...     print(line)
        resolution  kind
             64 px  small
            224 px  -
    """
    cells = [[column.title for column in columns]]
    cells += [[_cell(column, value) for column, value in zip(columns, row, strict=True)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        '  '.join(
            cell.ljust(width) if column.format is None else cell.rjust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)).rstrip()
        for row in cells]


def _cell(column: Column, value: str | float | None) -> str:
    if value is None:
        return '-'
    if isinstance(value, str):
        return printable(value)
    return f'{value:{column.format or ""}} {column.unit}'.rstrip()
