"""Image files: those that paths, folders and patterns mean."""

import functools
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
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
    matches any number of folders. Links to folders are followed, see `walk`.

    Args:
        inputs: Paths and patterns; what exists under the very name is not taken for a pattern.

    Returns:
        Existing files in the order of the inputs, each once.

    Raises:
        FileNotFoundError: If an input names nothing, or nothing with an image in it.
        OSError: If a folder cannot be read.
    """
    extensions = image_extensions()
    found: list[str] = []
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
        found += files
    return unique(found)


def walk(folder: str, hidden: tuple[str, ...] = ('.',)) -> Iterator[tuple[str, list[str]]]:
    """Go through a folder and all folders below it, links to folders included, each once however many ways lead to it.

    A folder that also lies below without a link goes by that name.

    Args:
        folder: Where to begin.
        hidden: How names of folders to leave out begin.

    Yields:
        The path of a folder, and the names in it that are no folders.

    Raises:
        OSError: If a folder cannot be read.
    """
    def fail(error: OSError) -> None:
        raise error

    seen: set[str] = set()
    pending = [folder]
    for top in pending:  # which grows
        for parent, subfolders, names in os.walk(top, onerror=fail):  # this does not enter links
            real = os.path.realpath(parent)
            if real in seen:
                subfolders.clear()
                continue
            seen.add(real)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(hidden))
            pending += [path for name in subfolders if os.path.islink(path := os.path.join(parent, name))]
            yield parent, names


def matches(pattern: str) -> Iterator[str]:
    """Find what matches a glob pattern in which ``**`` stands for all folders that `walk` goes through.

    Args:
        pattern: The pattern. At its end, ``**`` matches the folder before it alone, which stands for what is in it.

    Yields:
        Paths, in any order, some more than once.

    Raises:
        OSError: If a folder cannot be read.
    """
    parts = pattern.replace(os.altsep or os.sep, os.sep).split(os.sep)
    if '**' not in parts:
        yield from glob.iglob(pattern)
        return
    at = parts.index('**')
    head, tail = os.sep.join([*parts[:at], '']) or os.curdir, os.sep.join(parts[at + 1:])
    tops = [top for top in (glob.iglob(head) if glob.has_magic(head) else [head]) if os.path.isdir(top)]
    if not tail:
        yield from tops
        return
    for top in tops:
        for folder, _ in walk(top):
            yield from matches(os.path.join(glob.escape(folder), tail))


def unique(paths: Iterable[str | Path]) -> list[Path]:
    """Leave out files that came before under another path, by links to folders; links to files count as files.

    Args:
        paths: Of files.

    Returns:
        The others, in order.
    """
    real = functools.cache(os.path.realpath)
    found: dict[tuple[str, str], Path] = {}
    for path in paths:
        folder, name = os.path.split(path)
        found.setdefault((real(folder), name), Path(path))
    return list(found.values())


def _is_stub(opener: object) -> bool:
    """Whether Pillow only recognizes the format: video, weather data, HDF5."""
    if getattr(opener, 'format', None) == 'MPEG':
        return True
    return isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)


def _images_below(folder: str, extensions: frozenset[str]) -> list[str]:
    return _select((os.path.join(parent, name) for parent, names in walk(folder) for name in names), extensions)


def _images_matching(pattern: str, extensions: frozenset[str]) -> list[str]:
    files: set[str] = set()
    for match in matches(pattern):
        files.update(_images_below(match, extensions) if os.path.isdir(match) else [match])
    return _select(files, extensions)


def _select(files: Iterable[str], extensions: frozenset[str]) -> list[str]:
    return sorted(
        file for file in files
        if not os.path.basename(file).startswith('.') and os.path.splitext(file)[1].lower() in extensions)
