"""Listing: every image of a bulk run has a number, the same in each run over the same inputs.

Shards are ranges of these numbers. An image is a file, or a row of a Parquet file, on this machine or at an address.
"""

import bisect
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..data.files import find_images, image_extensions, matches, unique, walk
from ..data.pixels import first_line
from .remote import find_files, is_address, local_path
from .tables import open_table

_SUFFIX = '.parquet'
_HIDDEN = ('.', '_')  # what begins with these is not data, by the custom of Parquet's readers
_OPENED = 16  # Parquet files, at once: over a network, most of the time goes by in waiting


@dataclass(frozen=True)
class Location:
    """Where an image is."""

    path: str
    """Absolute path, or address, of an image file or a Parquet file."""
    row: int | None
    """Row of the Parquet file, counted from 0; None for an image file."""


@dataclass(frozen=True)
class Footer:
    """What a Parquet file says about itself."""

    rows: int
    """Number of rows."""
    size: int = 0
    """Of what is in it, in bytes."""
    schema: Any = None
    """Its pyarrow.Schema, without metadata."""


class Listing:
    """The images of a bulk run, in an order that depends on nothing but the inputs.

    Args:
        paths: Absolute paths, or addresses.
        tables: Those that are Parquet files; the others are image files.
    """

    def __init__(self, paths: Sequence[str], tables: Mapping[str, Footer] | None = None) -> None:
        self.paths = tuple(paths)
        self.tables = dict(tables or {})
        self._ends = list(accumulate(self.tables[path].rows if path in self.tables else 1 for path in self.paths))

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
        for path, rows in self.parts(start, stop):
            yield from (Location(path, row) for row in (rows or [None]))

    def parts(self, start: int, stop: int) -> Iterator[tuple[str, range | None]]:
        """The files that the images with some consecutive numbers are in.

        Args:
            start: The first number.
            stop: The number after the last.

        Yields:
            The path of each, in order, and the rows of a Parquet file, or None for an image file.
        """
        file = bisect.bisect_right(self._ends, start)
        while start < stop:
            path = self.paths[file]
            if path not in self.tables:
                yield path, None
                start += 1
            else:
                rows = self.tables[path].rows
                first = start - (self._ends[file] - rows)
                last = min(rows, first + stop - start)
                if first < last:
                    yield path, range(first, last)
                start += last - first
            file += 1

    def fingerprint(self) -> str:
        """What changes when a file is added, removed or renamed, or a Parquet file changes its length: a sha256."""
        digest = hashlib.sha256()
        for path in self.paths:
            table = self.tables.get(path)
            digest.update(f'{path}\0{table and (table.rows, table.size)}\n'.encode())
        return digest.hexdigest()

    def schemas(self) -> dict[Any, str]:
        """The schemas of the Parquet files, and for each the path of the first file that has it."""
        schemas: dict[Any, str] = {}
        for path, table in self.tables.items():
            schemas.setdefault(table.schema, path)
        return schemas


def list_inputs(inputs: Sequence[str | Path], image_column: str = 'image') -> Listing:
    """List the images that folders, Parquet files, addresses and patterns mean.

    Args:
        inputs: Parquet files, image files, folders that stand for all Parquet files or all images below them, and
            patterns for either; or addresses of such, as fsspec knows them (``s3://``, ``gs://``, ``hf://``).
        image_column: Column of the Parquet files that holds encoded images: bytes, or Hugging Face's struct of
            ``bytes`` and ``path``.

    Returns:
        The images, each once: in the order of the inputs, within a folder sorted by path, within a file by row.

    Raises:
        FileNotFoundError: If an input names nothing, or nothing with an image in it.
        ImportError: If what reads an address is not installed.
        OSError: If a folder or an address cannot be read.
        ValueError: If a folder holds images and Parquet files, or a Parquet file has no such column.
    """
    found: dict[str, bool] = {}
    for item in inputs:
        name = local_path(os.fspath(item))
        tables, images = _at_address(name) if is_address(name) else _here(name)
        if images and tables:
            raise ValueError(
                f'{name}: holds both images and Parquet files; say which with a pattern, such as'
                f' {os.path.join(name, "**", "*" + os.path.splitext(images[0])[1])!r}')
        for path in tables or images:
            found.setdefault(path if is_address(path) else os.path.abspath(path), bool(tables))
    kept = set(map(str, unique(path for path in found if not is_address(path))))
    paths = [path for path in found if path in kept or is_address(path)]
    for path in paths:
        if not _is_text(path):
            raise ValueError(f'{path!r}: the name of this file is not UTF-8; rename it')
    with ThreadPoolExecutor(_OPENED) as threads:
        tables = [path for path in paths if found[path]]
        footers = dict(zip(tables, threads.map(partial(_read_footer, column=image_column), tables), strict=True))
    schemas: dict[Any, Any] = {}  # thousands of files have one in common
    for path, footer in footers.items():
        footers[path] = replace(footer, schema=schemas.setdefault(footer.schema, footer.schema))
    listing = Listing(paths, footers)
    if not len(listing):
        raise FileNotFoundError(f'{", ".join(map(str, inputs))}: the Parquet files have no rows; give some that do')
    return listing


def _here(name: str) -> tuple[list[str], list[str]]:
    """The Parquet files and the images that a path or pattern means."""
    tables = _tables(name)
    if tables and not os.path.isdir(name):
        return tables, []
    try:
        return tables, list(map(str, find_images([name])))
    except FileNotFoundError:
        if tables:
            return tables, []
        if not os.path.isdir(name):
            raise
        raise FileNotFoundError(
            f'{name}: no image and no Parquet file in this folder or below; give a folder that holds some') from None


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
    return sorted(
        os.path.join(parent, name) for parent, names in walk(folder, _HIDDEN) for name in names
        if name.lower().endswith(_SUFFIX) and not name.startswith(_HIDDEN))


def _at_address(address: str) -> tuple[list[str], list[str]]:
    """The Parquet files and the images that an address means."""
    files = find_files(address)
    extensions = image_extensions()
    tables, images = [], []
    for name, below in files.items():
        hidden = [part for part in (below or '').split('/') if part.startswith(_HIDDEN)]
        if name.lower().endswith(_SUFFIX):
            tables += [name] if not hidden else []
        elif below is None or os.path.splitext(name)[1].lower() in extensions:  # a name of its own is enough
            images += [name] if not any(part.startswith('.') for part in hidden) else []
    if not tables and not images:
        raise FileNotFoundError(
            f'{address}: no image and no Parquet file among the {len(files)} files there; give an address of some')
    return tables, images


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_footer(path: str, column: str) -> Footer:
    """Open a Parquet file that has the column of images."""
    import pyarrow as pa

    try:
        with open_table(path) as file:
            schema, metadata = file.schema_arrow.remove_metadata(), file.metadata
    except pa.ArrowInvalid as error:
        raise ValueError(f'{path}: not a Parquet file ({first_line(error)}); give another input') from error
    if column not in schema.names:
        raise ValueError(
            f'{path}: no column {column!r}; name the column of images with --image-column (image_column): it has'
            f' {", ".join(map(repr, schema.names))}')
    if not _holds_bytes(schema.field(column).type):
        raise ValueError(
            f'{path}: the column {column!r} holds {schema.field(column).type}; --image-column (image_column) needs'
            ' bytes, or a struct with bytes')
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return Footer(metadata.num_rows, size, schema)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index('bytes') >= 0 and _holds_bytes(kind.field('bytes').type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
