"""Image files: those that paths, folders and patterns mean."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageFile


def image_extensions() -> frozenset[str]:
    """Lower-case file extensions of the image formats that Pillow can read, each with its dot."""
    extensions = Image.registered_extensions()  # loads the plugins, which fill Image.OPEN
    readable = {name for name, (opener, _) in Image.OPEN.items() if not _is_stub(opener)}
    return frozenset(extension for extension, name in extensions.items() if name in readable)


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """List the image files that files, folders and glob patterns mean.

    A file is taken whatever its name. A folder stands for all images below it and a pattern for those that match it,
    sorted, by the extensions Pillow knows and without hidden files. A folder that matches a pattern is a folder; ``**``
    matches any number of folders.

    Args:
        inputs: Paths and patterns; what exists under the very name is not taken for a pattern.

    Returns:
        Existing files in the order of the inputs, each once.

    Raises:
        FileNotFoundError: If an input names nothing, or nothing with an image in it.
        OSError: If a folder cannot be read.
    """
    extensions = image_extensions()
    found: dict[str, Path] = {}
    for item in inputs:
        name = os.fspath(item)
        if os.path.isfile(name):
            files = [name]
        elif os.path.isdir(name):
            files = _images_below(name, extensions)
            if not files:
                raise FileNotFoundError(f'{name}: no image in this folder or below; give a folder that holds images')
        elif glob.has_magic(name):
            files = _images_matching(name, extensions)
            if not files:
                raise FileNotFoundError(
                    f'{name}: no image matches this pattern; check it, and use ** to match folders in between')
        elif os.path.lexists(name):
            raise FileNotFoundError(f'{name}: not a regular file or folder; give an image file, a folder or a pattern')
        else:
            raise FileNotFoundError(f'{name}: no such file or folder; give an image file, a folder or a pattern')
        for file in files:
            found.setdefault(os.path.abspath(file), Path(file))
    return list(found.values())


def _is_stub(opener: object) -> bool:
    """Whether Pillow only recognizes the format: video, weather data, HDF5."""
    if getattr(opener, 'format', None) == 'MPEG':
        return True
    return isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)


def _images_below(folder: str, extensions: frozenset[str]) -> list[str]:
    def fail(error: OSError) -> None:
        raise error

    files = []
    for parent, subfolders, names in os.walk(folder, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith('.')]  # os.walk follows what is left
        files += [os.path.join(parent, name) for name in names]
    return _select(files, extensions)


def _images_matching(pattern: str, extensions: frozenset[str]) -> list[str]:
    files: set[str] = set()
    for match in glob.iglob(pattern, recursive=True):
        files.update(_images_below(match, extensions) if os.path.isdir(match) else [match])
    return _select(files, extensions)


def _select(files: Iterable[str], extensions: frozenset[str]) -> list[str]:
    return sorted(
        file for file in files
        if not os.path.basename(file).startswith('.') and os.path.splitext(file)[1].lower() in extensions)
