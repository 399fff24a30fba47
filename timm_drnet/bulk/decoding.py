"""Decoding: from the place of an image to the input of a model, or the reason why there is none."""

import io
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import torch

from ..data.pixels import UnreadableImageError
from .listing import Location

_ROWS = 16  # of a Parquet file, decompressed at a time


class Rows:
    """Encoded images from the rows of Parquet files, one after the other.

    A row cannot be reached but by reading its row group up to it, so what was opened for one call serves the next
    where that one goes on further down the row group.

    Args:
        column: The column of images.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._path = ''
        self._next = self._end = 0
        self._rows: Iterator[bytes | None] = iter(())

    def read(self, path: str, row: int) -> bytes | None:
        """The bytes of one image.

        Args:
            path: A Parquet file.
            row: Row of it, counted from 0.

        Returns:
            What is in the row; None for null.

        Raises:
            OSError: If it cannot be read.
            pyarrow.ArrowException: If it is damaged.
        """
        if path != self._path or not self._next <= row < self._end:
            self._path = ''  # should the next line fail
            self._next, self._end, self._rows = self._open(path, row)
            self._path = path
        try:
            while self._next < row:
                self._next += 1
                next(self._rows)
            self._next += 1
            return next(self._rows)
        except BaseException:
            self._path = ''  # an iterator that has failed is at its end
            raise

    def _open(self, path: str, row: int) -> tuple[int, int, Iterator[bytes | None]]:
        """The first row of a row's group, the one behind its last, and the images in it."""
        import pyarrow.parquet as pq

        # Without the mapping and the buffer, a whole column of a row group would be in memory.
        file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        end = 0
        for group in range(file.num_row_groups):
            first, end = end, end + file.metadata.row_group(group).num_rows
            if row < end:
                return first, end, self._images(file, group)
        raise OSError(f'it has {end} rows, fewer than when the run began')

    def _images(self, file: Any, group: int) -> Iterator[bytes | None]:
        with file:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[self.column], use_threads=False):
                for value in batch.column(0):
                    image = value.as_py()
                    yield image['bytes'] if isinstance(image, dict) else image


class Decoder:
    """Images as the input of a model.

    Args:
        load: From an image file, a path or an open one, to (C, S, S), as `image_loader` returns it.
        column: Column of Parquet files that holds the images.
        threads: Images that are decoded at once.
    """

    def __init__(self, load: Callable[[Any], torch.Tensor], column: str, threads: int = 1) -> None:
        self._load = load
        self._rows = Rows(column)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, locations: Iterable[Location]) -> Iterator[torch.Tensor | str]:
        """Read and decode images.

        Args:
            locations: Where they are; rows of one file in their order, or each would be searched for anew.

        Yields:
            For each, in order, (C, S, S), or the reason why it is unreadable.
        """
        opened = map(self._open, locations)
        return map(self._decode, opened) if self._pool is None else iter(self._pool.map(self._decode, opened))

    def _open(self, location: Location) -> str | BinaryIO | UnreadableImageError:
        if location.row is None:
            return location.path
        import pyarrow as pa

        try:
            image = self._rows.read(location.path, location.row)
        except (OSError, pa.ArrowException) as error:
            return UnreadableImageError(f'the Parquet file cannot be read: {error}')
        if image is None:
            return UnreadableImageError('the row holds no image')
        if not image:
            return UnreadableImageError('the image is empty')
        return io.BytesIO(image)

    def _decode(self, source: str | BinaryIO | UnreadableImageError) -> torch.Tensor | str:
        try:
            if isinstance(source, UnreadableImageError):
                raise source
            return self._load(source)
        except UnreadableImageError as error:
            return str(error)
