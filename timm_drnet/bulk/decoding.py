"""Decoding: from the place of an image to the input of a model, or the reason why there is none."""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO

import torch

from ..data.pixels import UnreadableImageError, first_line
from .grouping import batched
from .listing import Location
from .remote import is_address, read_remote
from .tables import open_table

_ROWS = 16  # of a Parquet file, decompressed at a time
_FETCHED = 16  # files at addresses, at once: most of the time goes by in waiting
_AHEAD = 2  # images for each thread: one to decode, and one to go on with


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
            path: A Parquet file, or its address.
            row: Row of it, counted from 0.

        Returns:
            What is in the row; None for null.

        Raises:
            OSError: If it cannot be read.
            UnreadableImageError: If it is damaged, or has no such row.
        """
        import pyarrow as pa

        try:
            return self._read(path, row)
        except pa.ArrowException as error:
            raise UnreadableImageError(f'the Parquet file cannot be read: {first_line(error)}') from error

    def _read(self, path: str, row: int) -> bytes | None:
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
        file = open_table(path)
        end = 0
        for group in range(file.num_row_groups):
            first, end = end, end + file.metadata.row_group(group).num_rows
            if row < end:
                return first, end, self._images(file, group)
        raise UnreadableImageError(
            f'the Parquet file cannot be read: it has {end} rows, fewer than when the run began')

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
        self._ahead = _AHEAD * threads
        self._fetchers = ThreadPoolExecutor(_FETCHED)  # starts its threads when it is given work

    def __call__(self, locations: Iterable[Location]) -> Iterator[torch.Tensor | str]:
        """Read and decode images, no further ahead of the consumer than keeps the threads busy.

        Args:
            locations: Where they are; rows of one file in their order, or each would be searched for anew.

        Yields:
            For each, in order, (C, S, S), or the reason why it is unreadable.

        Raises:
            OSError: If an address cannot be read, though something may be there: what is wrong with the network is no
                property of the image.
        """
        opened = self._open_all(locations)
        return map(self._decode, opened) if self._pool is None else self._decode_ahead(self._pool, opened)

    def _open_all(self, locations: Iterable[Location]) -> Iterator[str | BinaryIO | UnreadableImageError]:
        for group in batched(locations, _FETCHED):
            addresses = [place.path for place in group if place.row is None and is_address(place.path)]
            fetched = dict(zip(addresses, self._fetchers.map(_fetch, addresses), strict=True))
            for place in group:
                yield fetched[place.path] if place.path in fetched else self._open(place)

    def _open(self, location: Location) -> str | BinaryIO | UnreadableImageError:
        if location.row is None:
            return location.path
        try:
            image = self._rows.read(location.path, location.row)
        except UnreadableImageError as error:
            return error
        except OSError as error:
            if is_address(location.path):
                raise
            return UnreadableImageError(f'the Parquet file cannot be read: {error}')
        if image is None:
            return UnreadableImageError('the row holds no image')
        if not image:
            return UnreadableImageError('the image is empty')
        return io.BytesIO(image)

    def _decode_ahead(
            self,
            pool: ThreadPoolExecutor,
            opened: Iterable[str | BinaryIO | UnreadableImageError],
    ) -> Iterator[torch.Tensor | str]:
        """Like ``pool.map``, which would take all there is at once."""
        pending: deque[Future[torch.Tensor | str]] = deque()
        try:
            for source in opened:
                pending.append(pool.submit(self._decode, source))
                if len(pending) == self._ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _decode(self, source: str | BinaryIO | UnreadableImageError) -> torch.Tensor | str:
        try:
            if isinstance(source, UnreadableImageError):
                raise source
            return self._load(source)
        except UnreadableImageError as error:
            return str(error)


def _fetch(address: str) -> BinaryIO | UnreadableImageError:
    try:
        return io.BytesIO(read_remote(address))
    except FileNotFoundError:
        return UnreadableImageError('No such file or directory')
