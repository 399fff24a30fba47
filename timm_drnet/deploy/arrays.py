"""What the runner of an export computes itself: the input of a model from an image, the sizes between, confidence.

NumPy and Pillow are enough for it. ``timm-drnet export`` puts a copy of this file beside the runner.
"""

import math
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING or __package__:
    from ..data.pixels import REDUCING_GAP, UnreadableImageError, open_image
else:  # copied beside an export
    from pixels import REDUCING_GAP, UnreadableImageError, open_image

Array: TypeAlias = NDArray[np.float32]


def check_images(x: Array, channels: int) -> Array:
    """Images in float32, (B, C, S, S), or a ValueError that says what else was given."""
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[0] == 0 or x.shape[2] != x.shape[3] or x.shape[2] == 0:
        raise ValueError(
            f'Invalid input of shape {x.shape}: use a batch of square images, (B, C, S, S); crop or pad others.')
    if x.shape[1] != channels:
        raise ValueError(f'Invalid input of {x.shape[1]} channels: the model takes {channels}.')
    if x.dtype.kind != 'f':
        raise ValueError(f'Invalid input of type {x.dtype}: use normalized images in float32, see prepare().')
    if not np.isfinite(x.sum(dtype=np.float32)):  # activations of OpenVINO make a zero of what is no number
        raise ValueError('Invalid input: some of its values are not finite.')
    return x.astype(np.float32, copy=False)


def check_choices(choice: int | NDArray[np.integer[Any]], number: int, candidates: int) -> NDArray[np.integer[Any]]:
    """The choices of a number of images, (B,), or a ValueError where they are not the indices of candidates."""
    choices = np.full(number, choice) if isinstance(choice, int | np.integer) else np.asarray(choice)
    if choices.shape != (number,) or choices.dtype.kind not in 'iu':
        raise ValueError(
            f'Invalid choice of shape {choices.shape} and type {choices.dtype}: use one integer for each of the'
            f' {number} images.')
    invalid = choices[(choices < 0) | (choices >= candidates)]
    if len(invalid):
        raise ValueError(f'Invalid choice {invalid[0]}: there are {candidates} candidates, counted from 0.')
    return choices


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


def confidence(logits: Array) -> Array:
    """The largest softmax probability of each row of logits, (B, num_classes), as (B,) float32."""
    logits = logits.astype(np.float32, copy=False)
    return np.asarray(1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))


def resize(x: Array, size: int) -> Array:
    """Resize square images bilinearly without antialiasing, as PyTorch's ``F.interpolate``.

    ONNX's own Resize rounds the positions differently, which moves values by up to 1e-4 and can tip a choice.

    Args:
        x: Images, (B, C, S, S).
        size: The new side in pixels.

    Returns:
        Images, (B, C, size, size).
    """
    if x.shape[-1] == size:
        return x
    low, high, low_weight, high_weight = _neighbours(x.shape[-1], size)
    out = np.empty((*x.shape[:2], size, size), np.float32)
    for image, target in zip(x, out, strict=True):  # one by one, as their rows then stay in the cache
        rows = image.take(low, axis=1)
        rows *= low_weight[:, None]
        below = image.take(high, axis=1)
        below *= high_weight[:, None]
        rows += below
        np.multiply(rows.take(low, axis=2), low_weight, out=target)
        right = rows.take(high, axis=2)
        right *= high_weight
        target += right
    return out


@lru_cache(maxsize=64)
def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
    """For each new pixel of a line its two old neighbours and their weights."""
    scale = np.float32(old) / np.float32(new)
    # Computed exactly and rounded once, like the fused multiply-add that PyTorch uses.
    position = (np.float64(scale) * (np.arange(new) + 0.5) - 0.5).astype(np.float32).clip(0)
    low = position.astype(np.int64).clip(max=old - 1)
    weight = (position - low.astype(np.float32)).astype(np.float32)
    return low, (low + 1).clip(max=old - 1), 1 - weight, weight


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
