"""Labelled images, read as all commands read images; what cannot be read is named, not replaced by another image.

timm's own dataset leaves EXIF data, transparency and 16-bit grey out of account. It puts the next image in the place of
one that it cannot read, so that in a measurement the neighbour would count twice and nobody would know.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import DatasetFolder

from .pixels import REDUCING_GAP, Source, check_reducing_gap, first_line, open_image
from .reading import TRAINING_GAP, short_side


class DataError(ValueError):
    """Images that cannot be measured, with the remedy."""


class Batch(NamedTuple):
    """What a loader gives."""

    images: torch.Tensor | None
    """The readable ones, (B, C, S, S), or None if there are none."""
    target: torch.Tensor
    """Their labels, (B,)."""
    unreadable: list[tuple[str, str]]
    """Name and reason of the others."""


class LabelledImages(Dataset[tuple[torch.Tensor | None, int, str, str]]):
    """The images of a timm or torchvision dataset, each with its label, or with its name and why it cannot be read.

    Args:
        dataset: The dataset, of files or of PIL images.
        mode: Of the images, as PIL names it.
        limit: Take only the first of them.
    """

    def __init__(self, dataset: Any, mode: str, limit: int | None = None) -> None:
        self.dataset = dataset
        self.mode = mode
        self.side: int | None = None  # these three are of `open_image`, and given by `read_for`
        self.central = False
        self.reducing_gap: float | None = REDUCING_GAP
        self.length = len(dataset) if limit is None else min(limit, len(dataset))
        self.transform: Callable[[Image.Image], torch.Tensor] | None = None
        """From an image to the input of a model; given by `make_loader`, or by whoever makes another loader."""
        self.unreadable: list[tuple[str, str]] = []

    def __len__(self) -> int:
        """Number of images, unreadable ones too."""
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor | None, int, str, str]:
        """Image or None, label, and where there is no image its name and the reason."""
        assert self.transform is not None
        try:
            image, target = self.read(index)
        except Exception as error:  # archives and downloaded data sets have errors of their own
            return None, -1, self.name(index), first_line(error)
        return self.transform(image), target, '', ''

    def read_for(
            self,
            config: dict[str, Any],
            is_training: bool = False,
            reducing_gap: float | None = REDUCING_GAP,
    ) -> None:
        """Decode no more of the images than a transform of timm's needs.

        Args:
            config: Of `data_config`.
            is_training: Whether the transform is that of training, which crops anywhere.
            reducing_gap: Of `open_image`, for evaluation.

        Raises:
            ValueError: If the gap is below 1.
        """
        check_reducing_gap(reducing_gap)
        self.side = config['input_size'][-1] if is_training else short_side(config)
        self.reducing_gap = TRAINING_GAP if is_training else reducing_gap
        self.central = config['crop_mode'] == 'center' and not is_training

    def batches(self, loader: Iterable[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and labels of a loader over this dataset; what is unreadable is collected in ``unreadable``.

        Args:
            loader: As `make_loader` returns it.

        Yields:
            Images, (B, C, S, S), and labels, (B,).

        Raises:
            DataError: At the end, if not one image was readable.
        """
        self.unreadable = []
        for images, target, unreadable in loader:
            self.unreadable += unreadable
            if images is not None:
                yield images, target
        if len(self.unreadable) == len(self):
            name, reason = self.unreadable[0]
            raise DataError(f'none of {len(self)} images is readable; the first is {name} ({reason})')

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Image and label, before timm's transform.

        Raises:
            UnreadableImageError: If it is damaged.
            Exception: Whatever the dataset raises, such as OSError if there is no file.
        """
        if isinstance(self.dataset, ImageDataset):
            source, target, *_ = self.dataset.reader[index]
            with source:
                return self._open(source), -1 if target is None else int(target)
        if isinstance(self.dataset, DatasetFolder):
            source, target = self.dataset.samples[index]
        else:
            source, target = self.dataset[index]
        return self._open(source), int(target)

    def name(self, index: int) -> str:
        """Name of an image, as in ``unreadable``."""
        if isinstance(self.dataset, DatasetFolder):
            return os.path.relpath(str(self.dataset.samples[index][0]), self.dataset.root)
        try:
            return str(self.dataset.filename(index))
        except AttributeError:  # another torchvision dataset
            return f'image {index}'

    def _open(self, source: Source) -> Image.Image:
        return open_image(source, self.mode, self.side, self.central, self.reducing_gap)


def make_loader(
        images: LabelledImages,
        config: dict[str, Any],
        batch_size: int,
        workers: int = 0,
        device: torch.device | None = None,
        is_training: bool = False,
        reducing_gap: float | None = REDUCING_GAP,
) -> 'DataLoader[Any]':
    """A loader for evaluation or training, made by timm.

    Args:
        images: The images.
        config: Of `data_config`.
        batch_size: Number of images in a batch.
        workers: Number of processes that read images; 0 reads them in this one.
        device: That the batches are meant for.
        is_training: Whether to shuffle and augment the images, as timm does, and to leave out those that do not fill a
            batch.
        reducing_gap: Of `open_image`, for evaluation.

    Returns:
        A loader of `Batch`.

    Raises:
        ValueError: If the gap is below 1.
    """
    images.read_for(config, is_training, reducing_gap)
    loader: DataLoader[Any] = create_loader(
        images,  # type: ignore[arg-type]  # all it asks for is a place for the transform
        batch_size=batch_size, is_training=is_training, num_workers=workers, collate_fn=collate, use_prefetcher=False,
        persistent_workers=False, pin_memory=device is not None and device.type == 'cuda', **config)
    return loader


def collate(samples: list[tuple[torch.Tensor | None, int, str, str]]) -> Batch:
    """What a loader over `LabelledImages` makes of some of them."""
    readable = [(image, target) for image, target, _, _ in samples if image is not None]
    return Batch(
        torch.stack([image for image, _ in readable]) if readable else None,
        torch.tensor([target for _, target in readable], dtype=torch.int64),
        [(name, reason) for image, _, name, reason in samples if image is None],
    )
