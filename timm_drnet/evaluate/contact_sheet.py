"""Contact sheet: what the model saw of the images, in groups by the resolution chosen, as in Figure 4 of the paper.

A thumbnail's side is to those of the others as their resolutions are.
"""

import unicodedata
from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.pixels import UnreadableImageError, open_image
from .prediction import Prediction, Predictions, format_flops

_MARGIN, _GAP = 32, 16
_TILE = 144
"""Side of a thumbnail at the largest resolution, and width of the place for any."""
_CAPTION = 44
"""Height of the two lines below a thumbnail."""
_HEADING = 44
_TITLE = 84
_SECTION_GAP = 20
_MIN_COLUMNS, _MAX_COLUMNS = 6, 8

_PAPER, _INK, _GREY, _LINE = '#ffffff', '#1b1b1b', '#6a6a6a', '#d9d9d9'
_ACCENTS = ('#b5412b', '#c98a1b', '#2f7d5b', '#2b6cb0', '#6b4fa0')
"""One for each candidate, the largest first."""


def contact_sheet(predictions: Predictions, limit: int = 200) -> Image.Image:
    """Draw the images in groups, the smallest resolution first: the images that look easy to the model, then the rest.

    Args:
        predictions: At least one image.
        limit: Number of thumbnails; of larger groups the first ones are drawn, and their headings say so.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there is no image to draw.
    """
    if not predictions.images:
        raise ValueError('There are no images to draw.')
    groups = {
        resolution: [image for image in predictions.images if image.resolution == resolution]
        for resolution in sorted(predictions.costs)
    }
    shown = _longest_within([len(group) for group in groups.values()], limit)
    widest = max(min(len(group), shown) for group in groups.values())
    columns = max(_MIN_COLUMNS, min(_MAX_COLUMNS, widest))
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    sides = {resolution: max(1, round(_TILE * resolution / max(groups))) for resolution in groups}
    heights = [
        _section_height(min(len(group), shown), columns, sides[resolution]) for resolution, group in groups.items()]
    sheet = Image.new('RGB', (width, _TITLE + sum(heights)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_title(draw, predictions, width)
    y = _TITLE
    for (resolution, group), height in zip(groups.items(), heights, strict=True):
        accent = _ACCENTS[list(predictions.costs).index(resolution) % len(_ACCENTS)]
        _draw_heading(draw, predictions, resolution, min(len(group), shown), y, width, accent)
        for i, image in enumerate(group[:shown]):
            x = _MARGIN + i % columns * (_TILE + _GAP)
            top = y + _HEADING + i // columns * (sides[resolution] + _CAPTION + _GAP)
            _draw_image(sheet, draw, image, (x, top), sides[resolution], predictions.crop_pct)
        y += height
    return sheet


def _longest_within(lengths: list[int], limit: int) -> int:
    """The largest length to which the groups can be cut, all alike, for their sum to stay within the limit."""
    return max(n for n in range(1, max(lengths) + 1) if n == 1 or sum(min(n, length) for length in lengths) <= limit)


def _section_height(thumbnails: int, columns: int, side: int) -> int:
    rows = -(-thumbnails // columns)
    return _HEADING + rows * (side + _CAPTION + _GAP) + _SECTION_GAP


def _draw_title(draw: ImageDraw.ImageDraw, predictions: Predictions, width: int) -> None:
    n, spent, largest = len(predictions.images), predictions.flops, predictions.largest_flops
    side = max(predictions.costs)
    draw.text((_MARGIN, 22), 'Selected resolution', _INK, _font(24))
    text = (
        f'{n} {"image" if n == 1 else "images"} · {format_flops(spent / n, like=largest / n)} each on average · '
        f'{spent / largest:.0%} of the plain backbone at {side} px')
    draw.text((_MARGIN, 54), _shorten(text, width - 2 * _MARGIN, 15), _GREY, _font(15))


def _draw_heading(
        draw: ImageDraw.ImageDraw,
        predictions: Predictions,
        resolution: int,
        shown: int,
        y: int,
        width: int,
        accent: str,
) -> None:
    n = predictions.counts[resolution]
    flops = format_flops(predictions.costs[resolution], like=predictions.plain_flops)
    draw.line((_MARGIN, y, width - _MARGIN, y), _LINE)
    draw.rectangle((_MARGIN, y + 13, _MARGIN + 5, y + 31), accent)
    text = f'{resolution} px'
    draw.text((_MARGIN + 14, y + 29), text, _INK, _font(20), anchor='ls')
    x = _MARGIN + 14 + round(_font(20).getlength(text))
    text = f'  · {flops} · {n} of {len(predictions.images)}' + (f' · the first {shown} shown' if shown < n else '')
    draw.text((x, y + 29), text, _GREY, _font(16), anchor='ls')


def _draw_image(
        sheet: Image.Image,
        draw: ImageDraw.ImageDraw,
        image: Prediction,
        corner: tuple[int, int],
        side: int,
        crop_pct: float,
) -> None:
    """Draw what the model saw, and the caption below."""
    x, y = corner
    try:
        thumbnail = ImageOps.fit(
            open_image(image.path, side=_TILE), (side, side), Image.Resampling.LANCZOS,
            bleed=max(0.0, 1 - crop_pct) / 2)
    except UnreadableImageError:  # it has changed since the model saw it
        thumbnail = Image.new('RGB', (side, side), _LINE)
    sheet.paste(thumbnail, (x, y))
    draw.rectangle((x, y, x + side - 1, y + side - 1), outline=_LINE)
    draw.text((x, y + side + 5), _shorten(_drawable(image.labels[0]), _TILE, 15), _INK, _font(15))
    draw.text((x, y + side + 24), f'{image.probabilities[0]:.1%}', _GREY, _font(14))


def _shorten(text: str, width: int, size: int) -> str:
    """Cut a line, with an ellipsis, to a width in pixels."""
    text = ' '.join(text.split())
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f'{text}…') > width:
        text = text[:-1].rstrip()
    return f'{text}…'


def _drawable(text: str) -> str:
    """Replace what the font that comes with Pillow does not have: it knows no accents and no other alphabets."""
    letters = ''.join(c for c in unicodedata.normalize('NFKD', text) if not unicodedata.combining(c))
    return letters.encode('ascii', 'replace').decode('ascii')


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
