"""Remote files: what lies at an address such as ``s3://bucket/photos``, read through fsspec.

Ray Data reads addresses through the file systems of pyarrow, and through fsspec where pyarrow has none. This takes
fsspec for all: torch brings it along, it knows ``hf://``, and it says which package an address needs.
"""

import glob
import posixpath
from typing import Any

from ..data.pixels import first_line


def is_address(name: str) -> bool:
    """Whether this is an address and no path."""
    return '://' in name


def local_path(name: str) -> str:
    """The path that ``file://`` addresses mean; other addresses, and paths, as they are.

    Raises:
        ImportError: If what reads such addresses is not installed.
        ValueError: If there is nothing that reads them.
    """
    if not is_address(name):
        return name
    from fsspec.implementations.local import LocalFileSystem

    system, path = _file_system(name)
    return path if isinstance(system, LocalFileSystem) else name


def find_files(address: str) -> dict[str, str | None]:
    """List the files at an address: the one of this name, or all below it, or all that match it as a pattern.

    Args:
        address: The address. What exists under the very name is not taken for a pattern.

    Returns:
        Their addresses, sorted, and the path of each below a folder that was named or matched. That of a file that
        matched is '', and of the one that was named, None.

    Raises:
        FileNotFoundError: If there are none.
        ImportError: If what reads such addresses is not installed.
        OSError: If the address cannot be read.
        ValueError: If there is nothing that reads them.
    """
    system, path = _file_system(address)
    try:
        files = _find(system, path)
    except Exception as error:  # each file system has errors of its own
        raise OSError(
            f'{address}: cannot be read ({first_line(error)}); check the address, and who may read it') from error
    if not files:
        raise FileNotFoundError(f'{address}: no file there; check the address or pattern')
    return {system.unstrip_protocol(name): files[name] for name in sorted(files)}


def _find(system: Any, path: str) -> dict[str, str | None]:
    if system.isfile(path):
        return {path: None}
    folders = [path]
    files: dict[str, str | None] = {}
    if glob.has_magic(path) and not system.exists(path):
        matches = [  # without those that begin with a point, as on the disk
            (name, info['type'] == 'directory') for name, info in system.glob(path, detail=True).items()
            if not posixpath.basename(name.rstrip('/')).startswith('.')]
        folders = [name for name, is_folder in matches if is_folder]
        files = dict.fromkeys((name for name, is_folder in matches if not is_folder), '')
    for folder in folders:
        for name in system.find(folder):
            files.setdefault(name, name.removeprefix(folder).lstrip('/'))
    return files


def open_remote(address: str) -> Any:
    """Open the file at an address for reading.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it cannot be read.
    """
    system, path = _file_system(address)
    return _try(address, system.open, path, 'rb')


def read_remote(address: str) -> bytes:
    """Read the file at an address.

    Raises:
        FileNotFoundError: If there is none.
        OSError: If it cannot be read.
    """
    system, path = _file_system(address)
    content: bytes = _try(address, system.cat_file, path)
    return content


def _file_system(address: str) -> tuple[Any, str]:
    import fsspec.core
    from fsspec.registry import known_implementations

    scheme = address.partition('://')[0]
    if '::' in address:
        raise ValueError(f'{address}: addresses within others (::) are not read; give a plain one')
    try:
        system, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        package = known_implementations.get(scheme, {}).get('class', scheme).partition('.')[0]
        extra = 'http' if scheme == 'https' else scheme
        needed = f'"fsspec[{extra}]"' if package == 'fsspec' else package
        raise ImportError(
            f'{address}: {scheme}:// needs another package ({first_line(error)}): pip install {needed}') from error
    except Exception as error:
        raise ValueError(
            f'{address}: no address that fsspec can read ({first_line(error)}); use s3://, gs://, hf://, https://,'
            ' file:// or another that it knows') from error
    return system, path


def _try(address: str, function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except FileNotFoundError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise OSError(f'{address}: cannot be read ({first_line(error)})') from error
