"""Weights from the network, checked against their announced sha256 before anything reads them.

Neither torch.hub nor the Hub's client look at the content that they were sent: the former takes a connection that was
cut for the end of the file, the latter compares sizes. Both keep what they got.
"""

import hashlib
import http.client
import logging
import os
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is the client's transport's
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError, safe_open

_logger = logging.getLogger(__name__)

SAFETENSORS = 'model.safetensors'
"""The name of the weights in a repository of the Hub."""


def download(url: str, sha256: str, cache_dir: str | Path | None = None) -> Path:
    """Download a file once.

    Args:
        url: Its address; the last part of the path becomes the name of the file.
        sha256: Of its content, in hexadecimal digits.
        cache_dir: Where to keep it. Default: timm's cache, the folder of torch.hub's checkpoints.

    Returns:
        The file. One that is in the cache already is checked as well, and replaced if it is damaged.

    Raises:
        RuntimeError: If it cannot be had, or its content is another.
    """
    folder = Path(cache_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / posixpath.basename(urlsplit(url).path)
    if path.exists():
        if _sha256(path) == sha256:
            return path
        _logger.warning(f'{path} is damaged: downloading it again.')
        path.unlink()
    _logger.info(f'Downloading {url} to {path}')
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise RuntimeError(
            f'Could not download {url}: {error}. Nothing was kept. Try again, or get the file in another way and put it'
            f' at {path}.') from error
    return path


def check_hub_weights(
        model_id: str,
        filename: str | None = None,
        cache_dir: str | Path | None = None,
) -> None:
    """Bring the weights of a repository into the Hub's cache, and check them.

    The Hub announces the sha256 of a large file, and git's hash of one that is stored in git itself. A cache without
    symbolic links keeps neither, so there the Hub is asked again; without a connection the file is taken as it is.

    Args:
        model_id: ORG/NAME or ORG/NAME@REVISION.
        filename: A safetensors file. Default: model.safetensors.
        cache_dir: The Hub's cache, if not the usual one.

    Raises:
        RuntimeError: If the repository has no such file, the connection broke, or the content is not what the Hub
            announced.
        huggingface_hub.errors.HfHubHTTPError: If there is no such repository or revision, or no access to it.
    """
    repo_id, _, revision = model_id.partition('@')
    filename = filename or SAFETENSORS
    if not filename.endswith('.safetensors'):  # timm would look for others, down to a pickle
        raise RuntimeError(f'The weights {filename} of {model_id} are not loaded: use a .safetensors file.')
    try:
        path = Path(hf_hub_download(repo_id, filename, revision=revision or None, cache_dir=cache_dir))
    except LocalEntryNotFoundError:
        raise  # no connection and nothing in the cache: the client's message says so
    except EntryNotFoundError as error:
        raise RuntimeError(
            f'The repository {model_id} has no {filename}, and weights in other formats are not loaded, since a pickle'
            ' can run code. Ask its owner to publish it with safe_serialization=True, or with timm-drnet publish.',
        ) from error
    except HfHubHTTPError:
        raise  # no such repository or revision, or no access: these messages say so, too
    except Exception as error:  # a wrong length is an OSError; what a broken connection raises changed between versions
        reason = str(error).partition('\n')[0]
        raise RuntimeError(
            f'The download of {filename} from {model_id} failed: {reason} Nothing was kept: try again.') from error
    expected = _announced_hash(path, repo_id, filename)
    if expected is not None and (found := _hash_like(expected, path)) != expected:
        for copy in {path, path.parent / os.readlink(path) if path.is_symlink() else path, path.resolve()}:
            copy.unlink(missing_ok=True)
        kind = 'sha256' if len(expected) == 64 else 'git hash'
        raise RuntimeError(
            f'The file {filename} of {model_id} has the {kind} {found}, but {expected} was expected: the download was'
            ' damaged or tampered with. Nothing was kept: try again.')
    _check_safetensors(path, f'The file {filename} of {model_id}', 'ask its owner to publish it again')


def check_local_weights(folder: str | Path) -> None:
    """Make sure that the weights in a folder are safetensors, which timm then takes before all others.

    Args:
        folder: As timm or timm-drnet saves a model.

    Raises:
        RuntimeError: If there are none, or they are damaged.
    """
    path = Path(folder, SAFETENSORS)
    if not path.is_file():
        raise RuntimeError(
            f'The folder {folder} has no {SAFETENSORS}, and weights in other formats are not loaded from it, since a'
            ' pickle can run code. Save the model with safe_serialization=True.')
    _check_safetensors(path, f'The file {path}', 'save or copy it again')


def _check_safetensors(path: Path, name: str, remedy: str) -> None:
    try:
        with safe_open(path, framework='pt'):
            pass
    except SafetensorError as error:
        raise RuntimeError(f'{name} is no safetensors file ({error}): {remedy}.') from error


def _announced_hash(path: Path, repo_id: str, filename: str) -> str | None:
    """What the Hub said about a file in the cache, if that can be known."""
    if path.is_symlink():  # to what is named by the hash; that may be a link itself, into a store for many repositories
        name: str | None = Path(os.readlink(path)).name
    else:
        commit = path.parents[filename.count('/')].name
        try:
            name = get_hf_file_metadata(hf_hub_url(repo_id, filename, revision=commit)).etag
        except (HTTPError, OSError) as error:
            _logger.warning(f'{path} could not be checked against the Hub: {error}')
            return None
    return name if name and re.fullmatch(r'[0-9a-f]{40}|[0-9a-f]{64}', name) else None


def _hash_like(expected: str, path: Path) -> str:
    """A file's sha256, or its hash in git, which is shorter."""
    if len(expected) == 64:
        return _sha256(path)
    digest = hashlib.sha1(b'blob %d\0' % path.stat().st_size, usedforsecurity=False)
    with path.open('rb') as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest()


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
