"""Photographs to adapt on: a part to tune with and a part held out, read as all commands read images."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch.utils.data import DataLoader

from ..core.drnet import DRNet
from ..data.class_folders import ClassFolders
from ..data.files import find_images
from ..data.labelled import LabelledImages, collate
from ..data.reading import data_config

_SMALLEST_CROP = 0.35
"""Of the area of a photograph, in the views to tune on: enough to vary them, not so little that the object is lost."""


@dataclass(eq=False)
class Photographs:
    """Files, some to tune on and some held out."""

    paths: Sequence[Path]
    """All of them, in an order drawn at random; the held-out ones come first."""
    held_out: int
    """How many are held out."""
    labels: Mapping[Path, int] = field(default_factory=dict)
    """The class of each, where all are known."""
    unreadable: dict[Path, str] = field(default_factory=dict)
    """Files that were skipped so far, and why."""

    def evaluation(
            self,
            model: DRNet,
            everything: bool = False,
            batch_size: int = 32,
            workers: int = 0,
    ) -> Iterator[torch.Tensor]:
        """The held-out photographs, or all of them, as the model sees images in evaluation.

        Args:
            model: The model.
            everything: Whether to go through those to tune on, too.
            batch_size: Images in a batch.
            workers: Processes that read.

        Yields:
            Images, (B, C, S, S).
        """
        for images, _ in self.labelled(model, everything, batch_size, workers):
            yield images

    def labelled(
            self,
            model: DRNet,
            everything: bool = False,
            batch_size: int = 32,
            workers: int = 0,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs of the same images and their labels, (B,) integers; -1 where these are not known."""
        files = self._files(self.paths if everything else self.paths[:self.held_out], model)
        yield from self._read(files, batch_size, workers)

    def views(self, model: DRNet, seed: int, batch_size: int = 32, workers: int = 0) -> Iterator[torch.Tensor]:
        """The photographs to tune on, each once, cropped and mirrored at random.

        Args:
            model: The model.
            seed: The same views come with the same seed.
            batch_size: Images in a batch; those left over are left out.
            workers: Processes that read.

        Yields:
            Images, (B, C, S, S).
        """
        files = self._files(
            self.paths[self.held_out:], model, seed, is_training=True, scale=(_SMALLEST_CROP, 1.0), color_jitter=0.0)
        order = random.Random(seed).sample(range(len(files)), len(files))
        whole = order[:len(order) // batch_size * batch_size]
        for images, _ in self._read(files, batch_size, workers, whole):
            if len(images) > 1:  # norms need two; unreadable files make a batch smaller, and the others count
                yield images

    def _files(
            self,
            paths: Sequence[Path],
            model: DRNet,
            seed: int = 0,
            is_training: bool = False,
            **augmentation: Any,
    ) -> '_Files':
        config = data_config(model)
        files = _Files([(path, self.labels.get(path, -1)) for path in paths], 'RGB' if model.in_chans == 3 else 'L')
        files.seed = seed
        files.read_for(config, is_training)
        files.transform = create_transform(**config, is_training=is_training, **augmentation)
        return files

    def _read(
            self,
            files: '_Files',
            batch_size: int,
            workers: int,
            order: Sequence[int] | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        # A generator of its own, as the loader would draw from the caller's.
        loader = DataLoader(
            files, batch_size, sampler=order, num_workers=workers, collate_fn=collate, generator=torch.Generator())
        for images, labels, unreadable in loader:
            self.unreadable.update((Path(name), reason) for name, reason in unreadable)
            if images is not None:
                yield images, labels


class _Files(LabelledImages):
    """Pairs of a file and its label, whose transform draws the same numbers whatever process reads an image when."""

    seed = 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor | None, int, str, str]:
        with _drawing_from(f'{self.seed} {index}'):
            return super().__getitem__(index)

    def name(self, index: int) -> str:
        return str(self.dataset[index][0])


@contextmanager
def _drawing_from(seed: str) -> Iterator[None]:
    """For a while, what timm's transforms draw follows from a seed."""
    before = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        torch.manual_seed(random.getrandbits(63))
        try:
            yield
        finally:
            random.setstate(before)


def find_photographs(
        images: str | Path | Sequence[str | Path],
        held_out: float,
        seed: int,
        limit: int | None = None,
        num_classes: int = 0,
        class_map: Mapping[str, int] | None = None,
) -> Photographs:
    """List photographs and divide them.

    Args:
        images: A folder, or files, folders and patterns.
        held_out: The part to hold out, between 0 and 1.
        seed: Of the order.
        limit: Take only so many, drawn at random.
        num_classes: Of the model: a single folder with so many class folders tells the labels.
        class_map: Label of each class folder, where not all of the model's classes have one.

    Returns:
        The photographs.

    Raises:
        OSError: If there are none.
        ValueError: If an argument is out of range, or there are too few to divide.
    """
    if not 0 < held_out < 1:
        raise ValueError(f'Invalid held_out {held_out}: use a part between 0 and 1, such as 0.3.')
    inputs = [images] if isinstance(images, str | Path) else list(images)
    paths = sorted(find_images(inputs))
    labels = _labels(inputs[0], num_classes, class_map) if len(inputs) == 1 else {}
    if class_map:
        paths = [path for path in paths if path in labels]
    random.Random(seed).shuffle(paths)
    paths = paths[:limit]
    count = round(held_out * len(paths))
    if not 2 <= count <= len(paths) - 2:
        raise ValueError(
            f'Too few images: {len(paths)} leave {count} to hold out and {len(paths) - count} to tune on; give some'
            ' hundreds.')
    known = all(path in labels for path in paths)
    return Photographs(paths, count, {path: labels[path] for path in paths} if known else {})


def _labels(root: str | Path, num_classes: int, class_map: Mapping[str, int] | None) -> dict[Path, int]:
    """The classes that folders tell, if they are the model's."""
    if not Path(root).is_dir():
        return {}
    try:
        folders = ClassFolders(str(root), class_map)
    except FileNotFoundError:
        return {}
    fits = class_map or (len(folders.class_to_idx) == num_classes and '' not in folders.class_to_idx)
    return {Path(path): label for path, label in folders.samples} if fits else {}
