"""Pixels: whatever Pillow can open becomes an upright RGB or grey image.

All commands and the runner beside an export read images with `open_image`, so that all see the same. This file imports
nothing but NumPy and Pillow: ``timm-drnet export`` puts a copy of it beside the models that it writes.
"""

import io
import math
import os
import warnings
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import PIL
from PIL import ExifTags, Image, ImageCms

Source: TypeAlias = str | os.PathLike[str] | BinaryIO | Image.Image
"""A file, by name or opened, or one of Pillow's images."""

REDUCING_GAP = 2.5
"""How many times the wanted side a JPEG file keeps at least where it is decoded at a fraction of its size.

With less, answers on ImageNet photographs change by more than 0.2 points; 12 megapixels are a quarter at 256 pixels.
"""

_LONGEST = 16
"""Images longer than this many times their short side lose their ends before the resize and not after it."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the orientation in its EXIF data."""

_PNG = b'\x89PNG\r\n\x1a\n'


class UnreadableImageError(Exception):
    """A file that is no image Pillow can read; the message is the reason."""


def open_image(
        source: Source,
        mode: str = 'RGB',
        side: int | None = None,
        central: bool = False,
        reducing_gap: float | None = REDUCING_GAP,
) -> Image.Image:
    """Open an image of any format, mode and size.

    Of an animation the first frame is taken, the orientation in the EXIF data is applied, transparency is laid over
    white, 16-bit grey keeps its full range. Images of more than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels are refused.

    Pillow warns of odd metadata, and what becomes of its warnings is the caller's choice; see `ignore_warnings`.

    Args:
        source: A file, by name or opened, or one of Pillow's images, which does not change.
        mode: ``RGB`` or ``L``.
        side: Pixels that its short side will be resized to; a much larger JPEG file is then decoded at a half, a
            quarter or an eighth of its size, which takes less time and memory.
        central: Whether only a square from the centre will be used; an extremely long image then loses its ends, as a
            resize of all of it could take any memory.
        reducing_gap: How many times ``side`` is left at least for the resize, as Pillow calls it; None to decode all.

    Returns:
        The decoded image.

    Raises:
        UnreadableImageError: If it cannot be read.
        ValueError: If the gap is below 1.
    """
    check_reducing_gap(reducing_gap)
    least = None if side is None or reducing_gap is None else math.ceil(side * reducing_gap)
    try:
        image = _convert(source, mode) if isinstance(source, Image.Image) else _read(source, mode, least)
    except Exception as error:  # decoders raise almost anything on a damaged file
        raise UnreadableImageError(_reason(error, source)) from error
    return _crop_ends(image) if central else image


def check_reducing_gap(gap: float | None) -> None:
    """Refuse a gap that would leave less than is needed.

    Raises:
        ValueError: If it is below 1.
    """
    if gap is not None and not 1 <= gap < math.inf:
        raise ValueError(f'Invalid reducing_gap {gap}: use at least 1, or None to decode images at full size.')


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """Escape what a terminal cannot show: control characters, and bytes of a file name that are no text."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


def ignore_warnings() -> None:
    """Keep Pillow's warnings of odd metadata off the terminal. This is for programs: it holds for the whole process."""
    warnings.filterwarnings('ignore', module=r'PIL\b')


def _read(file: str | os.PathLike[str] | BinaryIO, mode: str, least: int | None) -> Image.Image:
    try:
        return _decode(file, mode, least)
    except ValueError:  # among others, a PNG holds a text of more than a megabyte
        bare = _bare_png(file)
        if bare is None:
            raise
        return _decode(bare, mode, least)


def _decode(file: str | os.PathLike[str] | BinaryIO, mode: str, least: int | None) -> Image.Image:
    with Image.open(file) as image:
        _check_size(image)
        if least is not None:
            image.draft(None, (least, least))
        return _convert(image, mode)


def _check_size(image: Image.Image) -> None:
    """Refuse a decompression bomb: Pillow warns at its limit, and refuses only what is twice as large."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise Image.DecompressionBombError


def _convert(image: Image.Image, mode: str) -> Image.Image:
    _check_size(image)
    image.load()
    _check_size(image)  # again: only now is known how large the image within an icon is
    if min(image.size) == 0:
        raise UnreadableImageError('the image has no pixels')
    image = _upright(image)
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        # ImageOps.exif_transpose would write the EXIF data anew, and fail with the image turned where they are damaged.
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image
    return image if turn is None else image.transpose(turn)


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


def _crop_ends(image: Image.Image) -> Image.Image:
    width, height = image.size
    limit = _LONGEST * min(width, height)
    if max(width, height) <= limit:
        return image
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    return image.crop((left, top, left + min(width, limit), top + min(height, limit)))


def _bare_png(file: str | os.PathLike[str] | BinaryIO) -> BinaryIO | None:
    """A PNG without texts, profiles and the like, which Pillow limits in size; None for a file of another format."""
    if isinstance(file, str | os.PathLike):
        content = Path(file).read_bytes()
    else:
        file.seek(0)
        content = file.read()
    if not content.startswith(_PNG):
        return None
    kept, start = [_PNG], len(_PNG)
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start:start + 4], 'big')
        kind = content[start + 4:start + 8]
        if kind[:1].isupper() or kind in (b'tRNS', b'eXIf'):  # a capital means: needed for the image
            kept.append(content[start:end])
        start = end
    return io.BytesIO(b''.join(kept))


def _reason(error: Exception, source: Source) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f'the image has more than {Image.MAX_IMAGE_PIXELS} pixels, the limit of Pillow; scale it down'
    if isinstance(error, PIL.UnidentifiedImageError) and not isinstance(source, Image.Image):
        size = os.path.getsize(source) if isinstance(source, str | os.PathLike) else source.seek(0, os.SEEK_END)
        return 'not an image of a format that Pillow can read' if size else 'the file is empty'
    return first_line(error)
