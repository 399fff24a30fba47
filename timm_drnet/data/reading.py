"""Reading images as the input of a model."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from timm.data import create_transform, resolve_data_config

from ..core.drnet import DRNet
from .files import find_images
from .pixels import REDUCING_GAP, UnreadableImageError, check_reducing_gap, open_image

TRAINING_GAP = 4.0
"""Reducing gap where a crop of any size is resized: timm's smallest has 0.28 of the image's side."""


@dataclass(frozen=True)
class Unreadable:
    """A file that was skipped."""

    path: Path
    """The file."""
    reason: str
    """Why it could not be read."""


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


def short_side(config: dict[str, Any]) -> int:
    """Pixels that timm's evaluation transform resizes the short side of an image to, before it crops the centre.

    Args:
        config: Of `data_config`.
    """
    return int(config['input_size'][-1] / config['crop_pct'])


def image_loader(
        model: DRNet,
        crop_pct: float | None = None,
        normalize: bool = True,
        reducing_gap: float | None = REDUCING_GAP,
) -> Callable[[str | Path | BinaryIO], torch.Tensor]:
    """How an image file becomes the input of a model: timm's evaluation transform at the largest resolution.

    Args:
        model: A DRNet.
        crop_pct: Central part of the image to use, if not the model's own.
        normalize: False for pixels as they are, uint8, which a `normalizer` makes the model's input.
        reducing_gap: Of `open_image`.

    Returns:
        A function from a file to (in_chans, r, r); it raises `UnreadableImageError`.

    Raises:
        ValueError: If the model takes neither RGB nor grey images, or the gap is below 1.
    """
    check_reducing_gap(reducing_gap)
    channels = model.in_chans
    if channels not in (1, 3):
        raise ValueError(f'The model takes images of {channels} channels; use one for grey (1) or RGB (3) images.')
    config = data_config(model, crop_pct)
    transform = create_transform(**config, normalize=normalize)
    mode, side, central = 'RGB' if channels == 3 else 'L', short_side(config), config['crop_mode'] == 'center'

    def load(path: str | Path | BinaryIO) -> torch.Tensor:
        image = open_image(path, mode, side, central, reducing_gap)
        return transform(image)  # type: ignore[no-any-return]  # timm is not typed

    return load


def normalizer(model: DRNet, device: torch.device | str) -> Callable[[torch.Tensor], torch.Tensor]:
    """How pixels become the input of a model on its device, where a quarter of the bytes have to go.

    Args:
        model: A DRNet.
        device: Where the pixels are.

    Returns:
        A function from uint8 to float32, (B, in_chans, r, r), with the very results of `image_loader`.
    """
    config = data_config(model)
    mean, std = (torch.tensor(config[key], device=device)[:, None, None] for key in ('mean', 'std'))
    return lambda pixels: (pixels.float() / 255 - mean) / std


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


def read_some(
        paths: Sequence[str | Path],
        load: Callable[[Path], torch.Tensor],
        number: int,
        unreadable: list[Unreadable],
) -> torch.Tensor:
    """Read some of the images in files and folders, taken at even distances, to measure a model on.

    Args:
        paths: Files and folders.
        load: As `image_loader` returns it.
        number: The most images to read.
        unreadable: Files that cannot be read are added to it.

    Returns:
        Images, (N, C, r, r).

    Raises:
        FileNotFoundError: If there are no images, or none that can be read.
    """
    found = find_images(paths)
    chosen = [found[i * len(found) // number] for i in range(number)] if len(found) > number else found
    images = [image for batch in read_batches(chosen, load, number, unreadable) for _, image in batch]
    if not images:
        raise FileNotFoundError(f'none of {len(chosen)} images is readable')
    return torch.stack(images)
