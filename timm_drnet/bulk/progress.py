"""Progress: how far a bulk run is, on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

_SECONDS = 30  # between two lines


def counted(number: int, noun: str) -> str:
    """A number of things, such as ``1 shard`` and ``1,000 shards``."""
    return f'{number:,} {noun}{"" if number == 1 else "s"}'


class Progress:
    """Shows how far a run is. That it cannot be shown is no reason to end the run.

    Args:
        images: Images of all shards.
        done: Images of those shards that are there.
        shards: Number of all shards.
        made: Number of those that are there.
        show: Whether to show anything.
    """

    def __init__(self, images: int, done: int, shards: int, made: int, show: bool) -> None:
        self._images, self._done, self._first = images, done, 0
        self._shards, self._made = shards, made
        self._show = show and sys.stderr is not None
        self._began = self._told = 0.0
        self._bar: tqdm[None] | None = None
        if self._show and sys.stderr.isatty():
            self._bar = tqdm(total=images, initial=done, desc='classify', unit='image', leave=False)
        self._tell()

    def __enter__(self) -> 'Progress':
        """Begin."""
        return self

    def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def shard(self) -> None:
        """Note that another shard is there."""
        self._made += 1

    def update(self, images: int) -> None:
        """Note that some more images are classified.

        Args:
            images: How many.
        """
        self._done += images
        if not self._first:  # the start of the workers is over
            self._first, self._began = self._done, time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(f'{self._made:,} of {counted(self._shards, "shard")}', refresh=False)
            self._bar.update(images)
        elif time.monotonic() - self._told >= _SECONDS:
            self._tell()

    def _tell(self) -> None:
        if not self._show or self._bar is not None:
            return
        self._told = time.monotonic()
        line = (
            f'classify: {self._done:,} of {counted(self._images, "image")},'
            f' {self._made:,} of {counted(self._shards, "shard")}')
        if self._done > self._first > 0:
            rate = (self._done - self._first) / (self._told - self._began)
            line += f', {rate:.1f} images/s, {tqdm.format_interval((self._images - self._done) / rate)} left'
        try:
            print(line, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody reads them any more, or stderr is closed
            self._show = False
