"""Output folders: checked before the work is done, written whole or not at all."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output_folder(out: str | os.PathLike[str]) -> Path:
    """Check whether a folder can be written.

    Args:
        out: The folder, which must not exist or be empty.

    Returns:
        Its absolute path.

    Raises:
        ValueError: If it cannot be written.
    """
    path = Path(os.path.abspath(out))
    if not path.parent.is_dir():
        raise ValueError(f'Invalid out {out}: there is no folder {path.parent}; create it first.')
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f'Invalid out {out}: this is a file or a link; name a new folder.')
    if path.exists() and any(path.iterdir()):
        raise ValueError(f'Invalid out {out}: this folder is not empty; name a new one.')
    if path.exists() and (path.is_mount() or path.samefile(os.curdir)):
        raise ValueError(f'Invalid out {out}: this folder cannot be replaced; name a new one, such as one in it.')
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f'Invalid out {out}: no permission to write in {path.parent}; name another folder.')
    return path


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder that takes the target's place in the end, or goes without a trace."""
    folder = target.with_name(f'.{target.name}.{uuid.uuid4().hex[:8]}')
    folder.mkdir()
    try:
        yield folder
        if target.is_dir():
            target.rmdir()  # empty, or this fails
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
