"""Compare decoders of JPEG files on speed and pixels, whole and at a fraction of the size.

    python examples/compare_decoders.py FOLDER ... --side 256

Each row is a decoder: milliseconds of one core for decoding a photograph, and for also resizing it, bicubically, to a
short side; and by how many of 255 steps the result differs on average from Pillow's of the whole photograph. Rows of
simplejpeg, which is libjpeg-turbo, need ``pip install simplejpeg``.
"""

import argparse
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from timm_drnet.data.files import find_images

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_GAPS = (None, 4, 2, 1)
_COMPARED = 0.75  # of the short side, from the centre


def main() -> int:
    """Compare, and print a table for each folder."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('folders', metavar='FOLDER', nargs='+', help='photographs')
    add('--side', metavar='PX', type=int, nargs='+', default=[256], help='short sides to resize to (256)')
    add('--limit', metavar='N', type=int, default=8, help='photographs of each folder (%(default)s)')
    add('--repeats', metavar='N', type=int, default=5, help='the fastest counts (%(default)s)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    for folder in args.folders:
        files = [path.read_bytes() for path in find_images([folder])[:args.limit]]
        for side in args.side:
            print(f'\n{len(files)} photographs of {folder}, to {side} px:\n')
            compare(files, side, args.repeats)
    return 0


def compare(files: Sequence[bytes], side: int, repeats: int) -> None:
    """Print a table.

    Args:
        files: The contents of JPEG files.
        side: Short side to resize to.
        repeats: The fastest of how many runs counts.
    """
    decoders: dict[str, tuple[Callable[[bytes], Any], Callable[[Any, int], Any]]] = {}
    for gap in _GAPS:
        name = 'whole' if gap is None else f'reducing gap {gap}'
        least = None if gap is None else math.ceil(gap * side)
        decoders[f'Pillow, {name}'] = partial(_pillow, least=least), _resized
        if simplejpeg is not None:
            decoders[f'simplejpeg, {name}'] = partial(_simplejpeg, least=least), _resized
    decoders['torchvision, whole'] = _torchvision, _resized_tensor
    seconds: dict[tuple[str, bool], list[float]] = {(name, both): [] for name in decoders for both in (False, True)}
    results = {}
    for _ in range(repeats):
        for name, both in seconds:
            decode, shrink = decoders[name]
            began = time.process_time()
            results[name] = [shrink(decode(file), side) if both else decode(file) for file in files]
            seconds[name, both].append((time.process_time() - began) / len(files))
    print('| decoder | decoding, ms | and resizing, ms | difference |\n|---|---|---|---|')
    expected = [_centre(image) for image in results['Pillow, whole']]
    for name, images in results.items():
        difference = statistics.fmean(
            float(np.abs(_centre(image) - one).mean()) for image, one in zip(images, expected, strict=True))
        print(f'| {name} | {1e3 * min(seconds[name, False]):.1f} | {1e3 * min(seconds[name, True]):.1f} |'
              f' {difference:.1f} |')


def _pillow(file: bytes, least: int | None) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    if least is not None:
        image.draft(None, (least, least))
    image.load()
    return image


def _simplejpeg(file: bytes, least: int | None) -> Image.Image:
    fraction = {} if least is None else {'min_width': least, 'min_height': least}
    return Image.fromarray(simplejpeg.decode_jpeg(file, 'RGB', fastdct=False, fastupsample=False, **fraction))


def _torchvision(file: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8))


def _size(width: int, height: int, side: int) -> tuple[int, int]:
    short = min(width, height)
    return side * width // short, side * height // short


def _resized(image: Image.Image, side: int) -> Image.Image:
    return image.resize(_size(*image.size, side), Image.Resampling.BICUBIC)


def _resized_tensor(image: torch.Tensor, side: int) -> torch.Tensor:
    height, width = image.shape[1:]
    return resize(image, list(_size(width, height, side))[::-1], InterpolationMode.BICUBIC, antialias=True)


def _centre(image: Any) -> Any:
    """The central square as numbers: the long sides may differ by a pixel."""
    pixels = image.permute(1, 2, 0).numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
    height, width = pixels.shape[:2]
    side = int(_COMPARED * min(height, width))
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top:top + side, left:left + side].astype(np.float32)


if __name__ == '__main__':
    sys.exit(main())
