"""Listing: every image of a bulk run has a number, the same in each run over the same inputs.

Shards are ranges of these numbers. An image is a file, or a row of a Parquet file.
"""

import bisect
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..data.files import find_images, matches, unique, walk

_SUFFIX = '.parquet'


@dataclass(frozen=True)
class Location:
    """Where an image is."""

    path: str
    """Absolute path of an image file or a Parquet file."""
    row: int | None
    """Row of the Parquet file, counted from 0; None for an image file."""


class Listing:
    """The images of a bulk run, in an order that depends on nothing but the inputs.

    Args:
        paths: Absolute paths.
        rows: Rows of each Parquet file, None for an image file.
    """

    def __init__(self, paths: Sequence[str], rows: Sequence[int | None]) -> None:
        self.paths = tuple(paths)
        self.rows = tuple(rows)
        self._ends = list(accumulate(1 if n is None else n for n in self.rows))

    def __len__(self) -> int:
        """Number of images."""
        return self._ends[-1] if self._ends else 0

    def locations(self, start: int, stop: int) -> Iterator[Location]:
        """Where the images with some consecutive numbers are.

        Args:
            start: The first number.
            stop: The number after the last.

        Yields:
            One for each, in order.
        """
        file = bisect.bisect_right(self._ends, start)
        while start < stop:
            rows, path = self.rows[file], self.paths[file]
            if rows is None:
                yield Location(path, None)
                start += 1
            else:
                first = start - (self._ends[file] - rows)
                last = min(rows, first + stop - start)
                yield from (Location(path, row) for row in range(first, last))
                start += last - first
            file += 1

    def fingerprint(self) -> str:
        """What changes when a file is added, removed or renamed, or a Parquet file changes its length: a sha256."""
        digest = hashlib.sha256()
        for path, rows in zip(self.paths, self.rows, strict=True):
            size = '' if rows is None else os.path.getsize(path)
            digest.update(f'{path}\0{rows}\0{size}\n'.encode())
        return digest.hexdigest()


def list_inputs(inputs: Sequence[str | Path], image_column: str = 'image') -> Listing:
    """List the images that folders, Parquet files and patterns mean.

    Args:
        inputs: Parquet files, image files, folders that stand for all Parquet files or all images below them, and
            patterns for either.
        image_column: Column of the Parquet files that holds encoded images: bytes, or Hugging Face's struct of
            ``bytes`` and ``path``.

    Returns:
        The images, each once: in the order of the inputs, within a folder sorted by path, within a file by row.

    Raises:
        FileNotFoundError: If an input names nothing, or nothing with an image in it.
        OSError: If a folder cannot be read.
        ValueError: If a folder holds images and Parquet files, or a Parquet file has no such column.
    """
    found: dict[str, bool] = {}
    for item in inputs:
        name = os.fspath(item)
        tables = _tables(name)
        if os.path.isdir(name):
            images = _images_in(name)
            if images and tables:
                raise ValueError(
                    f'{name}: holds both images and Parquet files; say which with a pattern, such as'
                    f' {os.path.join(name, "**", "*" + os.path.splitext(images[0])[1])!r}')
            if not images and not tables:
                raise FileNotFoundError(
                    f'{name}: no image and no Parquet file in this folder or below; give a folder that holds some')
        else:
            images = [] if tables else find_images([name])
        for path in tables or images:
            found.setdefault(os.path.abspath(path), bool(tables))
    paths = [str(path) for path in unique(found)]
    for path in paths:
        if not _is_text(path):
            raise ValueError(f'{path!r}: the name of this file is not UTF-8; rename it')
    rows = [_count_rows(path, image_column) if found[path] else None for path in paths]
    listing = Listing(paths, rows)
    if not len(listing):
        raise FileNotFoundError(f'{", ".join(map(str, inputs))}: the Parquet files have no rows; give some that do')
    return listing


def _tables(name: str) -> list[str]:
    """The Parquet files that an input means."""
    if os.path.isdir(name):
        return _tables_below(name)
    if not name.lower().endswith(_SUFFIX):
        return []
    if os.path.isfile(name):
        return [name]
    tables = sorted(path for path in matches(name) if os.path.isfile(path))
    if not tables:
        raise FileNotFoundError(f'{name}: no such Parquet file; check the path or pattern')
    return tables


def _tables_below(folder: str) -> list[str]:
    hidden = ('.', '_')  # what begins with these is not data, by the custom of Parquet's readers
    return sorted(
        os.path.join(parent, name) for parent, names in walk(folder, hidden) for name in names
        if name.lower().endswith(_SUFFIX) and not name.startswith(hidden))


def _images_in(folder: str) -> list[Path]:
    try:
        return find_images([folder])
    except FileNotFoundError:
        return []


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count_rows(path: str, column: str) -> int:
    """Rows of a Parquet file that has the column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except pa.ArrowInvalid as error:
        raise ValueError(f'{path}: not a Parquet file ({_first_line(error)}); give another input') from error
    if column not in schema.names:
        raise ValueError(
            f'{path}: no column {column!r}; name the column of images with --image-column (image_column): it has'
            f' {", ".join(map(repr, schema.names))}')
    if not _holds_bytes(schema.field(column).type):
        raise ValueError(
            f'{path}: the column {column!r} holds {schema.field(column).type}; --image-column (image_column) needs'
            ' bytes, or a struct with bytes')
    return int(rows)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index('bytes') >= 0 and _holds_bytes(kind.field('bytes').type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
