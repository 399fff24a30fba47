"""The process around a command: standard streams that are closed, full or narrow in what they can show, and signals."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import Any, TextIO


class OutputStream:
    """A text stream that cannot fail: once it has, the rest of what is written to it is dropped.

    A command that is about to save what it worked on for hours must not end because nobody reads what it prints.

    Args:
        stream: The stream behind it.
    """

    error: OSError | None = None
    """What the stream failed with."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write text, with escapes for what the stream's encoding does not have."""
        encoding = getattr(self.stream, 'encoding', None) or 'utf-8'
        with self._noting_errors():
            self.stream.write(text.encode(encoding, 'backslashreplace').decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Write what has been held back."""
        with self._noting_errors():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        """Whatever else the stream has."""
        return getattr(self.stream, name)

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            with suppress(OSError, ValueError):  # a stream that is no file
                # Or what is still held back would fail again when the interpreter ends.
                descriptor, null = self.stream.fileno(), os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


@contextmanager
def standard_streams() -> Iterator[OutputStream]:
    """Let standard output and standard error be an `OutputStream` each; what goes to a closed one is lost silently.

    Yields:
        Standard output.
    """
    # No file that is opened later may take the number of a closed standard stream: libraries write there.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    with open(os.devnull, 'w', encoding='utf-8') as nowhere:
        out, err = OutputStream(sys.stdout or nowhere), OutputStream(sys.stderr or nowhere)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                yield out
            finally:
                out.flush()
                err.flush()


@contextmanager
def signals_as_exits() -> Iterator[None]:
    """Let the signals that end a process raise SystemExit, so that nothing half-written stays behind."""
    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ('SIGTERM', 'SIGHUP') if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # no other thread may set handlers
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
