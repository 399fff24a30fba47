"""The images behind an analysis: which ones were read, and thumbnails of some."""

import base64
import io
from collections.abc import Sequence

from PIL import Image, ImageOps

from ..data.labelled import LabelledImages

_SIDE = 144
"""Of a thumbnail in pixels: it is shown smaller, so that it is sharp on a fine screen as well."""
_QUALITY = 72


def readable_images(images: LabelledImages) -> list[int]:
    """Which images of a dataset are behind the batches that were read from it.

    Args:
        images: A dataset from which all batches were taken.

    Returns:
        Their indices, in the order of the batches.
    """
    names = {name for name, _ in images.unreadable}
    # Names need not be unique (archives may hold files of the same name), so a name alone rules no image out.
    return [i for i in range(len(images)) if images.name(i) not in names or _read(images, i) is not None]


def evenly_spaced(items: Sequence[int], limit: int) -> list[int]:
    """At most so many items, from the beginning to the end: a dataset stands in the order of its classes."""
    if len(items) <= limit:
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]


def thumbnail(images: LabelledImages, index: int) -> str | None:
    """A small square from the centre of an image, which is about what the model saw.

    Args:
        images: The dataset.
        index: Of the image.

    Returns:
        A JPEG as a data URI, or None if the image can no longer be read.
    """
    image = _read(images, index)
    if image is None:
        return None
    square = ImageOps.fit(image.convert('RGB'), (_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    square.save(file, 'JPEG', quality=_QUALITY, optimize=True)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode("ascii")}'


def _read(images: LabelledImages, index: int) -> Image.Image | None:
    try:
        return images.read(index)[0]
    except Exception:  # of damaged files decoders raise almost anything
        return None
