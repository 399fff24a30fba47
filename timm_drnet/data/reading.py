"""Reading images: whatever Pillow can open becomes RGB or grey, and then the input of a model."""

import os
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import torch
from PIL import Image, ImageCms, ImageOps
from timm.data import create_transform, resolve_data_config

from ..core.drnet import DRNet

_DRAFT_MARGIN = 4
"""A JPEG is decoded at an eighth, a quarter or half its size where that leaves this many times the wanted side."""

_LONGEST = 16
"""Images longer than this many times their short side lose their ends before the resize and not after it."""


class UnreadableImageError(Exception):
    """A file that is no image Pillow can read; the message is the reason."""


@dataclass(frozen=True)
class Unreadable:
    """A file that was skipped."""

    path: Path
    """The file."""
    reason: str
    """Why it could not be read."""


def open_image(path: str | Path | BinaryIO, mode: str = 'RGB', side: int | None = None) -> Image.Image:
    """Open an image of any format, mode and size.

    Of an animation the first frame is taken, the orientation in the EXIF data is applied, transparency is laid over
    white, 16-bit grey keeps its full range. Images over Pillow's limit against decompression bombs are refused.

    Args:
        path: The file, by name or opened.
        mode: ``RGB`` or ``L``.
        side: Side in pixels to which the image will be resized; a much larger JPEG is then decoded at a fraction of
            its size, which takes less time and memory.

    Returns:
        The decoded image.

    Raises:
        UnreadableImageError: If it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # odd metadata
            warnings.simplefilter('error', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if side is not None:
                    image.draft(None, (side * _DRAFT_MARGIN,) * 2)
                image.load()
                return _convert(_upright(image), mode)
    except Exception as error:  # decoders raise almost anything on a damaged file
        raise UnreadableImageError(_reason(error, path)) from error


def data_config(model: DRNet, crop_pct: float | None = None) -> dict[str, Any]:
    """How to prepare images for a DRNet: timm's configuration of the model, at its largest resolution.

    Args:
        model: The model.
        crop_pct: Central part of the image to use, if not the model's own.

    Returns:
        Arguments of timm's ``create_loader`` and ``create_transform``.
    """
    # The size in the model's configuration need not be the one that it was created with.
    size = model.resolutions[0]
    config: dict[str, Any] = resolve_data_config(
        {'input_size': (model.in_chans, size, size), 'crop_pct': crop_pct}, model=model)
    for key in ('mean', 'std'):
        if len(config[key]) != model.in_chans:
            config[key] = (statistics.fmean(config[key]),) * model.in_chans  # as timm's loader adapts them
    return config


def image_loader(model: DRNet, crop_pct: float | None = None) -> Callable[[str | Path | BinaryIO], torch.Tensor]:
    """How an image file becomes the input of a model: timm's evaluation transform at the largest resolution.

    Args:
        model: A DRNet.
        crop_pct: Central part of the image to use, if not the model's own.

    Returns:
        A function from a file to (in_chans, r, r); it raises `UnreadableImageError`.

    Raises:
        ValueError: If the model takes neither RGB nor grey images.
    """
    channels, side = model.in_chans, model.resolutions[0]
    if channels not in (1, 3):
        raise ValueError(f'The model takes images of {channels} channels; use one for grey (1) or RGB (3) images.')
    config = data_config(model, crop_pct)
    transform = create_transform(**config)

    def load(path: str | Path | BinaryIO) -> torch.Tensor:
        image = open_image(path, 'RGB' if channels == 3 else 'L', side)
        if config['crop_mode'] == 'center':
            image = _crop_ends(image)
        return transform(image)  # type: ignore[no-any-return]  # timm is not typed

    return load


def read_batches(
        paths: Iterable[str | Path],
        load: Callable[[Path], torch.Tensor],
        batch_size: int,
        unreadable: list[Unreadable],
) -> Iterator[list[tuple[Path, torch.Tensor]]]:
    """Read image files in batches of those that can be read.

    Args:
        paths: The files.
        load: As `image_loader` returns it.
        batch_size: Number of images in a batch; the last may have fewer.
        unreadable: The other files are added to it.

    Yields:
        Files and what they hold.
    """
    batch = []
    for path in map(Path, paths):
        try:
            batch.append((path, load(path)))
        except UnreadableImageError as error:
            unreadable.append(Unreadable(path, str(error)))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _crop_ends(image: Image.Image) -> Image.Image:
    """Crop an extremely long image to what the central crop can see: a resize of all of it could take any memory."""
    width, height = image.size
    limit = _LONGEST * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if min(image.size) == 0:
        raise UnreadableImageError('the image has no pixels')
    if image.mode[0] in 'IF':  # Pillow would clip the values at 255
        image = _to_8_bits(image)
    elif image.mode == 'LAB':  # Pillow knows no other way from here
        image = ImageCms.profileToProfile(  # type: ignore[assignment]  # None is what it returns in place
            image, ImageCms.createProfile('LAB'), ImageCms.createProfile('sRGB'), outputMode='RGB')
    elif image.has_transparency_data:
        image = image.convert('RGBA')
        opaque = Image.new('RGB', image.size, 'white')
        opaque.paste(image, mask=image.getchannel('A'))
        image = opaque
    return image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floating point, in 256 steps from 0 to its white.

    Pillow opens the 16-bit grey of some formats as 32-bit integers, and no format says where floating point has its
    white, so the values decide.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    largest = float(values.max())
    if image.mode.startswith('I'):
        white = max(65535.0, largest)
    else:
        white = next((white for white in (1.0, 255.0, 65535.0) if largest <= white), largest)
    return Image.fromarray((values.clip(0) * (255 / white)).round().astype(np.uint8))


def _reason(error: Exception, path: str | Path | BinaryIO) -> str:
    if isinstance(error, UnreadableImageError):
        return str(error)
    if isinstance(error, (Image.DecompressionBombWarning, Image.DecompressionBombError)):
        return f'{str(error).split(",")[0]}; scale the image down'
    if isinstance(error, PIL.UnidentifiedImageError):
        size = os.path.getsize(path) if isinstance(path, (str, Path)) else path.seek(0, os.SEEK_END)
        return 'not an image of a format that Pillow can read' if size else 'the file is empty'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip() or type(error).__name__
