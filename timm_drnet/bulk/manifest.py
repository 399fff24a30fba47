"""Manifest: what a bulk run's shards were made from, so that no later run adds others to them."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..core.drnet import DRNet
from ..data.output_folder import remove_staged, staged_file
from ..data.pixels import REDUCING_GAP
from ..data.reading import data_config
from ..deploy.weights_digest import weights_digest
from ..version import __version__
from .listing import Listing

MANIFEST = '_manifest.json'
"""Name of the file; what begins like this is not data to Parquet's readers."""

_FORMAT = 2

_TRAINING = ('alpha', 'eta', 'tau', 'joint_resolutions', 'predictor_loss', 'distill', 'distill_topdown')
"""Arguments of a model that are not in use once it is trained."""

_MEANINGS = {
    'format': 'format of the output',
    'timm_drnet': 'version of timm-drnet',
    'weights': 'model weights',
    'architecture': 'model architecture',
    'model': 'model settings',
    'labels': 'labels',
    'precision': 'precision',
    'reducing_gap': 'reducing gap',
    'topk': 'topk',
    'shard_size': 'shard size',
    'images': 'number of images',
    'inputs': 'list of input files',
    'image_column': 'image column',
    'columns': 'columns of the input',
}


def make_manifest(
        model: DRNet,
        listing: Listing,
        labels: Sequence[str],
        topk: int,
        shard_size: int,
        image_column: str = 'image',
        carried: Any = None,
        precision: str = 'float32',
        reducing_gap: float | None = REDUCING_GAP,
) -> dict[str, Any]:
    """Everything that the contents of the shards depend on, but for the last digits of probabilities.

    So it says nothing of batch size, workers and accelerators.

    Args:
        model: The model.
        listing: The images.
        labels: One for each class.
        topk: Labels for each image.
        shard_size: Images in a shard.
        image_column: Column of Parquet files that holds the images.
        carried: A pyarrow.Schema of the columns that are carried over from the input.
        precision: Of the engine.
        reducing_gap: Of `image_loader`.

    Returns:
        What becomes the manifest.
    """
    settings = {
        **{name: value for name, value in dataclasses.asdict(model.args).items() if name not in _TRAINING},
        'prices': model.prices,
        'preparation': data_config(model),
    }
    if not any(model.prices):
        del settings['cost']  # then costs choose nothing
    manifest = {
        'format': _FORMAT,
        'timm_drnet': __version__,
        'weights': weights_digest(model),
        'architecture': _architecture(model),
        'model': settings,
        'labels': hashlib.sha256('\n'.join(labels).encode()).hexdigest(),
        'precision': precision,
        'reducing_gap': reducing_gap,
        'topk': topk,
        'shard_size': shard_size,
        'images': len(listing),
        'inputs': listing.fingerprint(),
        'image_column': image_column if listing.tables else None,
        'columns': {field.name: str(field.type) for field in carried or ()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(manifest))  # tuples become lists, as when it is read
    return plain


def _architecture(model: DRNet) -> str:
    """What the layers are: an activation, a stride or a kind of pooling is no part of the weights.

    What training hangs on a model, such as its log, is no part of the network.
    """
    layers = repr((model.backbone, model.predictor))
    return hashlib.sha256(re.sub(r' at 0x[0-9a-f]+', '', layers).encode()).hexdigest()


@contextmanager
def output_of(manifest: dict[str, Any], output: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder for the shards of a run, new or with those of an earlier run with the same manifest.

    While it is in use, no other run can use it.

    Args:
        manifest: As `make_manifest` returns it.
        output: The folder.

    Yields:
        Its absolute path.

    Raises:
        ValueError: If it cannot be used, holds something else, or is in use.
    """
    folder = Path(os.path.abspath(output))
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f'Invalid output {output}: {error.strerror}; name a folder in one that exists.') from error
    with _lock(folder, output):
        if not os.access(folder, os.W_OK):
            raise ValueError(f'Invalid output {output}: no permission to write there; name another folder.')
        remove_staged(folder)
        _check(folder, manifest, output)
        yield folder


def _check(folder: Path, manifest: dict[str, Any], output: str | os.PathLike[str]) -> None:
    """Write the manifest, or compare it with the one that is there."""
    path = folder / MANIFEST
    if not path.is_file():
        if any(folder.iterdir()):
            raise ValueError(
                f'Invalid output {output}: this folder is not empty, and not the output of an earlier run; name another'
                ' folder.')
        with staged_file(path, durable=True) as file:
            file.write_text(json.dumps(manifest, indent=2) + '\n', encoding='utf-8')
        return
    try:
        earlier = dict(json.loads(path.read_text(encoding='utf-8')))
    except (TypeError, ValueError) as error:
        raise ValueError(f'Invalid output {output}: {MANIFEST} in it is damaged; name another folder.') from error
    differences = [
        _difference(key, meaning, earlier.get(key), manifest[key])
        for key, meaning in _MEANINGS.items() if earlier.get(key) != manifest[key]]
    if earlier.get('format') != _FORMAT:
        del differences[1:]  # the others may only be named or counted in another way
    if differences:
        raise ValueError(
            f'Invalid output {output}: it holds the shards of a run with other arguments: {"; ".join(differences)}.'
            ' Give the same arguments again, or name another folder.')


def _difference(key: str, meaning: str, earlier: Any, now: Any) -> str:
    if isinstance(earlier, dict) and isinstance(now, dict):
        parts = [
            f'{name} {earlier.get(name)}, now {now.get(name)}' for name in {**earlier, **now}
            if earlier.get(name) != now.get(name)]
        return f'{meaning}: {", ".join(parts)}'
    if isinstance(now, int) or key in ('timm_drnet', 'image_column', 'reducing_gap'):
        return f'{meaning} {earlier}, now {now}'
    return f'another {meaning}' if key in ('inputs', 'architecture') else f'other {meaning}'


@contextmanager
def _lock(folder: Path, output: str | os.PathLike[str]) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows has none, and opens no folder
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f'Invalid output {output}: {error.strerror}; name another folder.') from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f'Invalid output {output}: another run is writing there; wait for it.') from error
        except OSError:  # some file systems have no locks either
            pass
        yield
    finally:
        os.close(descriptor)  # and with it goes the lock, as it does when the process dies
