"""What the sections of the page of an analysis share: its subject, and how text and numbers come into it.

Names of files and classes are other people's text; `text` is the only way by which they come into the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..evaluate.prediction import format_flops
from .style import SIZE_STYLES


@dataclass(frozen=True)
class Subject:
    """What was analyzed."""

    model: str
    """Name of the model."""
    source: str
    """Name of the data."""
    class_names: Sequence[str]
    """One for each class of the model."""
    names: Sequence[str]
    """One for each image of the analysis."""
    thumbnails: Mapping[int, str | None]
    """Data URIs, by the number of the image in the analysis; None for one that can no longer be read."""
    unreadable: Sequence[tuple[str, str]]
    """Name and reason of the images that could not be analyzed."""
    settings: Mapping[str, str]
    """How it was measured."""


def text(value: str) -> str:
    """Text of unknown origin for a page: no markup, and nothing that a reader would not see."""
    return escape(printable(value))


def breakable(value: str) -> str:
    """As `text`, of a name that may be broken after its punctuation where a line is narrow."""
    return ''.join(f'{c}<wbr>' if c in '._/' else c for c in text(value))


def printable(value: str) -> str:
    """Escape control characters, and bytes of a file name that are no text."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in value)


def percent(value: float, decimals: int = 2) -> str:
    """A number of per cent."""
    return f'{value:.{decimals}f}&nbsp;%'


def flops(gflops: float) -> str:
    """GFLOPs in a unit that suits them."""
    return format_flops(1e9 * gflops).replace(' ', '&nbsp;')


def count(number: int, noun: str) -> str:
    """A number of things, whose plural ends in s."""
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


def size_style(index: int) -> str:
    """CSS class of a candidate resolution."""
    return SIZE_STYLES[index % len(SIZE_STYLES)]


def swatch(style: str) -> str:
    """A small patch of the colour of a CSS class; what it means must stand beside it."""
    return f'<span class="swatch {style}" aria-hidden="true"></span>'


def table(label: str, caption: str, head: str, body: str, style: str = '', scroll: str = '') -> str:
    """A table that scrolls within the page where it is wider, also by keyboard.

    Args:
        label: What it is about.
        caption: Above it, HTML.
        head: The cells of its head, HTML.
        body: Its rows, HTML.
        style: CSS class of the table.
        scroll: Further CSS class of what it scrolls in.

    Returns:
        HTML.
    """
    return (
        f'<div class="scroll {scroll}" role="region" aria-label="{escape(label)}" tabindex="0"><table class="{style}">'
        f'<caption><span>{caption}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
