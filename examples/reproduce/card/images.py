"""Small images for a card: a few files that travel, and one tensor on the device that crops are taken from.

Thousands of 64 px images have more header than picture, so they travel as mosaics of 1,024 in AVIF, some 800 bytes an
image. That loses a little: `pack` prints the peak signal-to-noise ratio.
"""

import io
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIDE = 64
_TILES = 32
"""Images on a side of a mosaic."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """Images and labels on a device."""

    pixels: torch.Tensor
    """(N, 3, 64, 64) uint8, channels last."""
    labels: torch.Tensor
    """(N,) int64."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.pixels)

    def part(self, index: torch.Tensor) -> 'Images':
        """Some of them, by their indices, (n,)."""
        return Images(self.pixels[index], self.labels[index])

    def batches(
            self,
            size: int,
            generator: torch.Generator | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Go through all images once.

        Args:
            size: Images in a batch.
            generator: On the device. With one, in random order, cropped and flipped, and without the last, smaller
                batch; without, all images in order as they are.

        Yields:
            Normalized images, (B, 3, 64, 64) float32 channels last, and labels, (B,).
        """
        device = self.pixels.device
        size = min(size, len(self))
        order = torch.arange(len(self), device=device)
        if generator is not None:
            order = torch.randperm(len(self), generator=generator, device=device)[:len(self) // size * size]
        for index in order.split(size):
            x = _normalized(self.pixels[index])
            yield (x if generator is None else _crop(x, generator)), self.labels[index]


def _normalized(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (_MEAN, _STD))
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def _crop(x: torch.Tensor, generator: torch.Generator, least: float = 0.35) -> torch.Tensor:
    """Random resized crops as timm's: 35 to 100 % of the area, sides of 3:4 to 4:3; half of them flipped."""
    draw = torch.rand(5, len(x), generator=generator, device=x.device)
    area, ratio = least + (1 - least) * draw[0], ((2 * draw[1] - 1) * math.log(4 / 3)).exp()
    width, height = ((area * r).sqrt().clamp(max=1) for r in (ratio, 1 / ratio))
    flip = torch.where(draw[4] < 0.5, -1.0, 1.0)
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * draw[2] - 1) * (1 - width), (2 * draw[3] - 1) * (1 - height)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    cropped = F.grid_sample(x, grid, padding_mode='border', align_corners=False)
    return cropped.contiguous(memory_format=torch.channels_last)


def read_folder(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a folder of image folders, ``train`` or ``val``, in the order of names.

    Returns:
        Pixels, (N, 64, 64, 3) uint8, and labels, (N,) int64.
    """
    classes = sorted(path for path in (folder / split).iterdir() if path.is_dir())
    files = [(path, label) for label, one in enumerate(classes) for path in sorted(one.rglob('*')) if path.is_file()]
    pixels = np.stack([np.asarray(Image.open(path).convert('RGB')) for path, _ in files])
    return pixels, np.array([label for _, label in files])


def pack(folder: Path, output: Path, quality: int, per_class: int | None = None) -> None:
    """Pack a folder of ``train`` and ``val`` into mosaics.

    Args:
        folder: Of image folders.
        output: New folder.
        quality: Of AVIF as Pillow has it.
        per_class: Training images of each class to take; None for all.
    """
    output.mkdir(parents=True, exist_ok=True)
    index, error, sent = {}, [], 0
    for split in ('train', 'val'):
        pixels, labels = read_folder(folder, split)
        if per_class and split == 'train':
            chosen = np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)])
            pixels, labels = pixels[chosen], labels[chosen]
        index[split] = labels.tolist()
        for number, start in enumerate(range(0, len(pixels), _TILES**2)):
            part = pixels[start:start + _TILES**2]
            padded = np.zeros((_TILES**2, SIDE, SIDE, 3), np.uint8)
            padded[:len(part)] = part
            rows = padded.reshape(_TILES, _TILES, SIDE, SIDE, 3).transpose(0, 2, 1, 3, 4)
            data = io.BytesIO()
            Image.fromarray(rows.reshape(_TILES * SIDE, _TILES * SIDE, 3)).save(data, 'AVIF', quality=quality, speed=6)
            (output / f'{split}-{number:03d}.avif').write_bytes(data.getvalue())
            error.append((_tiles(data)[:len(part)].astype(np.float32) - part).__pow__(2).mean())
            sent += len(data.getvalue())
    (output / 'index.json').write_text(json.dumps(index))
    print(f'{sent / 2**20:.1f} MiB, PSNR {10 * math.log10(255**2 / max(np.mean(error), 1e-9)):.1f} dB')


def unpack(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read what `pack` wrote: pixels, (N, 64, 64, 3) uint8, and labels, (N,) int64."""
    labels = np.array(json.loads((folder / 'index.json').read_text())[split])
    with ThreadPoolExecutor() as pool:
        mosaics = pool.map(_tiles, sorted(folder.glob(f'{split}-*.avif')))
    return np.concatenate(list(mosaics))[:len(labels)], labels


def _tiles(file: Path | io.BytesIO) -> np.ndarray:
    mosaic = np.asarray(Image.open(file).convert('RGB'))
    tiles = mosaic.reshape(_TILES, SIDE, _TILES, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(_TILES**2, SIDE, SIDE, 3)


def on_device(pixels: np.ndarray, labels: np.ndarray, device: torch.device) -> Images:
    """Put images on a device."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2)
    return Images(x, torch.from_numpy(labels).to(device))
