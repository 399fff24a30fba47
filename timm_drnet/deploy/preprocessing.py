"""From an image to the input of an exported model, as timm prepares it for evaluation, with NumPy and Pillow alone.

``timm-drnet export`` puts a copy of this file beside the runner.
"""

import math
import os
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from PIL import Image

if TYPE_CHECKING or __package__:
    from ..data.pixels import REDUCING_GAP, UnreadableImageError, open_image
    from .arrays import Array
else:  # copied beside an export
    from arrays import Array
    from pixels import REDUCING_GAP, UnreadableImageError, open_image


def prepare(
        image: str | os.PathLike[str] | BinaryIO | Image.Image,
        preprocessing: dict[str, Any],
        reducing_gap: float | None = REDUCING_GAP,
) -> Array:
    """Make an image the input of a model, as timm prepares it; a process that only prepares needs no model for it.

    Args:
        image: An image file, by name or opened, of any format that Pillow can read, or one of Pillow's images.
        preprocessing: That of the manifest.
        reducing_gap: How many times the size that the model needs a JPEG file is decoded at least; None to decode all.

    Returns:
        The normalized image, (C, S, S), S the largest resolution.

    Raises:
        UnreadableImageError: If it cannot be read.
        ValueError: If the model takes neither RGB nor grey images.
    """
    channels, side, _ = preprocessing['input_size']
    if channels not in (1, 3):
        raise ValueError(f'The model takes images of {channels} channels; use one for grey (1) or RGB (3) images.')
    mode, central = 'RGB' if channels == 3 else 'L', preprocessing['crop_mode'] == 'center'
    try:
        scaled = math.floor(side / preprocessing['crop_pct'])
        return _transform(open_image(image, mode, scaled, central, reducing_gap), preprocessing)
    except UnreadableImageError as error:
        name = os.fspath(image) if isinstance(image, str | os.PathLike) else getattr(image, 'name', repr(image))
        raise UnreadableImageError(f'{name}: {error}') from error


def _transform(image: Image.Image, config: dict[str, Any]) -> Array:
    """timm's evaluation transform: resize, crop the centre, normalize."""
    side, crop_mode = config['input_size'][-1], config['crop_mode']
    scaled = max(1, math.floor(side / config['crop_pct']))
    fill: tuple[int, ...] = (0,) * len(image.getbands())
    if crop_mode == 'squash':
        size = (scaled, scaled)
    elif crop_mode == 'border':
        ratio = max(image.size) / scaled
        size = (max(1, round(image.width / ratio)), max(1, round(image.height / ratio)))
        fill = tuple(round(255 * mean) for mean in config['mean'])
    else:
        short, long = min(image.size), max(image.size)
        longer = int(scaled * long / short)
        size = (scaled, longer) if image.width <= image.height else (longer, scaled)
    if image.size != size:
        image = image.resize(size, Image.Resampling[config['interpolation'].upper()])
    canvas = Image.new(image.mode, (side, side), fill)
    canvas.paste(image, (-_margin(image.width, side), -_margin(image.height, side)))
    pixels = np.asarray(canvas, np.float32).reshape(side, side, -1).transpose(2, 0, 1) / np.float32(255)
    mean, std = (np.asarray(config[key], np.float32)[:, None, None] for key in ('mean', 'std'))
    return np.ascontiguousarray((pixels - mean) / std)


def _margin(length: int, side: int) -> int:
    """Where a central crop begins; before the image if that is shorter."""
    return round((length - side) / 2) if length >= side else -((side - length) // 2)
