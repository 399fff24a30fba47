"""Weights from the network, checked against their announced sha256 before anything reads them.

Neither torch.hub nor the Hub's client look at the content that they were sent: the former takes a connection that was
cut for the end of the file, the latter compares sizes. Both keep what they got.
"""

import hashlib
import http.client
import logging
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
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

    Files that are stored in git itself, under 10 MB and not LFS, have no sha256 to compare with; nor have those in a
    cache without symbolic links.

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
    blob = path.resolve()  # the cache names what was in LFS by its sha256
    if re.fullmatch(r'[0-9a-f]{64}', blob.name) and (sha256 := _sha256(blob)) != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise RuntimeError(
            f'The file {filename} of {model_id} has the sha256 {sha256}, but {blob.name} was expected: the download was'
            ' damaged or tampered with. Nothing was kept: try again.')
    try:
        with safe_open(path, framework='pt'):
            pass
    except SafetensorError as error:
        raise RuntimeError(
            f'The file {filename} of {model_id} is no safetensors file ({error}): ask its owner to publish it'
            ' again.') from error


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
