"""A folder per class, found and labelled as timm does it, but with circles of links that end."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from timm.data.readers import get_img_extensions
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader import Reader
from timm.utils import natural_key

from .files import walk
from .labels import read_names

_SPLITS = (('train', 'training'), ('val', 'valid', 'validation', 'eval', 'evaluation'))
"""Names for one thing."""


class ClassFolders(Reader):
    """The images below a folder; the name of the folder that each is in tells its class.

    Images and classes have timm's order. Links to folders are followed, and each folder is read once.

    Args:
        root: The folder.
        class_map: Label of each class; images of others are left out. None numbers the classes in order.

    Raises:
        FileNotFoundError: If there is no image.
        OSError: If a folder cannot be read.
    """

    def __init__(self, root: str, class_map: Mapping[str, int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        found = [
            (os.path.join(folder, name), _class_of(folder, root))
            for folder, names in walk(root) for name in names if _is_image(name)]
        if class_map is None:
            class_map = {name: i for i, name in enumerate(sorted({name for _, name in found}, key=natural_key))}
        self.root = root
        self.class_to_idx = class_map
        self.samples = sorted(
            ((path, class_map[name]) for path, name in found if name in class_map),
            key=lambda sample: natural_key(sample[0]))
        if not self.samples:
            raise FileNotFoundError(
                f'Found 0 images in subfolders of {root}. Supported image extensions are'
                f' {", ".join(get_img_extensions())}')

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        """The opened file of an image, and its label."""
        path, label = self.samples[index]
        return open(path, 'rb'), label

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        if basename:
            return os.path.basename(path)
        return path if absolute else os.path.relpath(path, self.root)


def class_names(root: str) -> list[str]:
    """Names of the classes in the order of their labels, in less time than `ClassFolders` takes for many images.

    Args:
        root: The folder.

    Raises:
        OSError: If a folder cannot be read.
    """
    found = {_class_of(folder, root) for folder, names in walk(root) if any(map(_is_image, names))}
    return sorted(found, key=natural_key)


def folder_of_split(root: str, split: str) -> str:
    """The subfolder for a split if there is one, by timm's rule, or else the folder itself.

    Args:
        root: The folder.
        split: Name of the split; ``train`` and ``validation`` have other names, too.
    """
    split = split.partition('[')[0]
    others = next((names for names in _SPLITS if split in names), ())
    subfolders = (os.path.join(root, name) for name in (split, *others))
    return next(filter(os.path.isdir, subfolders), root)


def read_class_map(name: str, root: str) -> dict[str, int]:
    """Read a file that gives classes their labels.

    Args:
        name: A text file with one name per line, in the order of the labels, or a pickle of a dict, as timm has it.
        root: The folder where the file may lie, too.

    Returns:
        The label of each class.

    Raises:
        OSError: If there is no such file.
        ValueError: If it holds no names.
    """
    path = Path(name) if os.path.exists(name) else Path(root, name)
    if path.suffix.lower() != '.txt':
        return dict(load_class_map(str(path)))
    return {name: label for label, name in enumerate(read_names(path))}


def _is_image(name: str) -> bool:
    return not name.startswith('.') and os.path.splitext(name)[1].lower() in get_img_extensions()


def _class_of(folder: str, root: str) -> str:
    return '' if folder == root else os.path.basename(folder)
