"""Files that are there whole or not at all, and a folder that only one run works in."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .configuration import UserError

_PATIENCE = 30.0
"""Seconds to wait for what is left of a run that was killed; the readers of images notice within a few."""


def write_json(path: Path, content: Any) -> None:
    """Write a file so that nobody ever sees a part of it.

    Args:
        path: Where to; the folder is made.
        content: What `json.dumps` takes.
    """
    write_text(path, json.dumps(content, indent=2) + '\n')


def write_text(path: Path, text: str) -> None:
    """The same for any text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with part.open('w', encoding='utf-8') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a file that `write_json` wrote.

    Raises:
        UserError: If it is none.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: not readable as JSON ({error}); delete it, and it is made again') from error


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Work in a folder while no other run does.

    Child processes that inherit the descriptor hold the folder, too. So a training that outlives a killed run keeps
    a second one from writing into the same files.

    Args:
        folder: The folder, which is made.

    Yields:
        A file descriptor for child processes.

    Raises:
        UserError: If another run is at work there.
    """
    import fcntl  # not on Windows, where only the report can be made

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.lock').open('a+', encoding='utf-8') as file:
        deadline = time.monotonic() + _PATIENCE
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    raise UserError(
                        f'--work {folder}: another run is at work there (started by process {file.read().strip()});'
                        ' wait until it ends, stop it, or use another folder') from None
                if not waiting:
                    print('waiting for an earlier run to end', flush=True)
                    waiting = True
                time.sleep(0.2)
        file.truncate(0)
        file.write(f'{os.getpid()}\n')
        file.flush()
        yield file.fileno()
