"""Output folders and files: checked before the work is done, written whole or not at all."""

import errno
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEAST = 4096
"""Bytes that any output takes."""

_STAGED = re.compile(r'\.timm-drnet-[0-9a-f]{8}(\.\w+)?')


class OutputError(ValueError):
    """An output that cannot be written; the message names the argument, its value and the way out."""


def check_output_folder(out: str | os.PathLike[str], name: str = 'out', size: int = 0) -> Path:
    """Check whether a folder can be written, by writing something beside it for a moment.

    Args:
        out: The folder, which must not exist or be empty.
        name: Name of the argument, for the error.
        size: Bytes that there must be room for.

    Returns:
        Its absolute path.

    Raises:
        OutputError: If it cannot be written.
    """
    path = Path(os.path.abspath(out))
    if not path.parent.is_dir():
        raise OutputError(f'Invalid {name} {out}: there is no folder {path.parent}; create it first.')
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise OutputError(f'Invalid {name} {out}: this is a file or a link; name a new folder.')
    if path.exists() and any(path.iterdir()):
        raise OutputError(f'Invalid {name} {out}: this folder is not empty; name a new one.')
    if path.exists() and (path.is_mount() or path.samefile(os.curdir)):
        raise OutputError(f'Invalid {name} {out}: this folder cannot be replaced; name a new one, such as one in it.')
    _check_room(path.parent, size, f'Invalid {name} {out}')
    return path


def check_output_file(out: str | os.PathLike[str], name: str = 'out', size: int = 0) -> Path:
    """Check whether a file can be written, by writing something beside it for a moment.

    Args:
        out: The file. If it exists, it will be replaced.
        name: Name of the argument, for the error.
        size: Bytes that there must be room for.

    Returns:
        Its absolute path.

    Raises:
        OutputError: If it cannot be written.
    """
    path = Path(os.path.abspath(out))
    if path.is_dir():
        raise OutputError(f'Invalid {name} {out}: this is a folder; name a file.')
    if not path.parent.is_dir():
        raise OutputError(f'Invalid {name} {out}: there is no folder {path.parent}; create it first.')
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f'Invalid {name} {out}: no permission to write; name another file.')
    if not _is_device(path):
        _check_room(_behind_links(path).parent, size, f'Invalid {name} {out}')
    return path


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder that takes the target's place in the end, or goes without a trace.

    Its files get the permissions that the user's umask gives, whoever wrote them.

    Args:
        target: As `check_output_folder` returns it.

    Yields:
        The folder to write.

    Raises:
        OSError: If it cannot be written; it names the target.
    """
    folder = target.with_name(f'.timm-drnet-{uuid.uuid4().hex[:8]}')
    with _errors_name(target, folder):
        try:
            folder.mkdir()
            yield folder
            mode = folder.stat().st_mode & 0o666
            for path in folder.rglob('*'):
                if path.is_file():
                    path.chmod(mode)
            if target.is_dir():
                target.rmdir()  # empty, or this fails
            folder.rename(target)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def staged_file(target: Path, durable: bool = False) -> Iterator[Path]:
    """A file, with the target's suffix, that takes the target's place in the end, or goes without a trace.

    A file that is replaced hands its permissions on. A device or a pipe, such as /dev/stdout, is written as it is.

    Args:
        target: As `check_output_file` returns it.
        durable: Whether it is to be on the disk, and not only on its way there, when it takes the target's place.

    Yields:
        The file to write.

    Raises:
        OSError: If it cannot be written; it names the target.
    """
    if _is_device(target):
        with _errors_name(target, target):
            yield target
        return
    place = _behind_links(target)
    file = place.with_name(f'.timm-drnet-{uuid.uuid4().hex[:8]}{target.suffix}')
    with _errors_name(target, file):
        try:
            file.touch()
            mode = stat.S_IMODE((place if place.exists() else file).stat().st_mode)
            yield file
            if durable:
                _sync(file)
            file.chmod(mode)
            os.replace(file, place)
            if durable and hasattr(os, 'O_DIRECTORY'):  # Windows opens no folder
                _sync(place.parent)
        except BaseException:
            file.unlink(missing_ok=True)
            raise


def remove_staged(folder: Path) -> None:
    """Delete the incomplete files and folders of processes that were killed.

    Args:
        folder: Where `staged_file` and `staged` were used, and are not in use now.
    """
    for path in folder.iterdir():
        if not _STAGED.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows syncs no file opened to read
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_room(folder: Path, size: int, what: str) -> None:
    """Permissions alone tell neither read-only nor full disks."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LEAST))
            file.flush()
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        need = f' ({size / 1e6:.0f} MB needed)' if error.errno == errno.ENOSPC and size else ''
        raise OutputError(
            f'{what}: {error.strerror or error} in {folder}{need}; name a place on another disk or in another folder.'
        ) from error


def _is_device(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


@contextmanager
def _errors_name(target: Path, staging: Path) -> Iterator[None]:
    """Let errors of the system name what the user does; those about other files stay as they are."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not Path(error.filename).is_relative_to(staging):
            raise
        told = os.strerror(error.errno) if error.errno else str(error)  # pyarrow has words of its own
        raise OSError(error.errno, told, str(target)) from error
