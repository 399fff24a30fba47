"""The manifest of an export: what it records, and that the folder is whole and as it was written.

``timm-drnet export`` puts a copy of this file beside the models that it writes, so it imports nothing of the package.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

FORMAT = 'timm-drnet export'
FORMAT_VERSION = 2
"""2 has the router, a cascade's thresholds and the precision."""
MANIFEST = 'manifest.json'

_MAX_MANIFEST = 64 * 2 ** 20
"""Bytes; a million labels of usual length take less than half."""

PRECISIONS = ('float32', 'bf16', 'fp16', 'int8')

_BEFORE_VERSION_2 = {'router': 'predictor', 'thresholds': [], 'precision': 'float32'}


class InvalidExportError(Exception):
    """A folder that is no complete, unchanged export; the message names the file and the remedy."""


def read_manifest(folder: str | os.PathLike[str], runtime: str) -> dict[str, Any]:
    """Read what an export recorded, and check that it is whole.

    Args:
        folder: As written by ``timm-drnet export``.
        runtime: ``onnx`` or ``torch``: what the files must be for.

    Returns:
        The manifest.

    Raises:
        InvalidExportError: If there is none, or it is foreign, changed, incomplete, of a newer format or for another
            runtime.
    """
    path = Path(folder) / MANIFEST
    content = _read(path, 'give a folder written by "timm-drnet export"')
    try:
        manifest = json.loads(content)
        digest = manifest_digest(manifest) if isinstance(manifest, dict) else None
    except (ValueError, RecursionError) as error:
        raise InvalidExportError(f'{path}: not JSON ({error}); copy it anew, or export the model again') from error
    if not isinstance(manifest, dict) or manifest.get('format') != FORMAT:
        raise InvalidExportError(f'{path}: not of an export; give a folder written by "timm-drnet export"')
    version = manifest.get('format_version', 0)
    if _is_whole(version, FORMAT_VERSION + 1, 1000):
        raise InvalidExportError(
            f'{path}: of format {version}, and this code knows {FORMAT_VERSION}; use the onnx_runner.py in that folder,'
            ' or a newer timm-drnet')
    if manifest.get('sha256') != digest:
        raise InvalidExportError(f'{path}: changed since the export; copy it anew, or export the model again')
    if version == 1:
        manifest = {**_BEFORE_VERSION_2, **manifest}
    if flaw := _find_flaw(manifest):
        raise InvalidExportError(f'{path}: {flaw}; copy it anew, or export the model again')
    if manifest['runtime'] != runtime:
        other = 'OnnxDRNet' if runtime == 'torch' else 'ExportedDRNet'
        raise InvalidExportError(
            f'{path}: of an export with --format {manifest["runtime"]}; load it with timm_drnet.{other}(path)')
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The checksum of all entries of a manifest but the checksum itself, in hexadecimal."""
    rest = {key: value for key, value in manifest.items() if key != 'sha256'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_file(folder: str | os.PathLike[str], entry: dict[str, Any]) -> bytes:
    """Read a file of an export, and check that it is the one that was written.

    Args:
        folder: Of the export.
        entry: Of the file in the manifest.

    Returns:
        Its content.

    Raises:
        InvalidExportError: If it is missing or differs.
    """
    path = Path(folder) / str(entry['name'])
    content = _read(path, 'the export is not complete: copy all of it, or export the model again', entry['size'])
    if hashlib.sha256(content).hexdigest() != entry['sha256']:
        raise InvalidExportError(
            f'{path}: not the file that {MANIFEST} describes; copy it anew, or export the model again')
    return content


def _read(path: Path, remedy: str, size: int | None = None) -> bytes:
    """The content of a file in a folder, of the right size, to which a link may not lead from elsewhere."""
    if os.path.dirname(os.path.realpath(path)) != os.path.realpath(path.parent):
        raise InvalidExportError(f'{path}: a link to a place outside the folder; copy the file itself there')
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would wait for somebody to write
            raise InvalidExportError(f'{path}: a folder or device, not a file; {remedy}')
        if size is not None and found.st_size != size:
            raise InvalidExportError(
                f'{path}: not the file that {MANIFEST} describes ({found.st_size:,} bytes of {size:,}); copy it anew,'
                ' or export the model again')
        if size is None and found.st_size > _MAX_MANIFEST:
            raise InvalidExportError(f'{path}: of {found.st_size:,} bytes, too large for one; {remedy}')
        return path.read_bytes()
    except OSError as error:
        raise InvalidExportError(f'{path}: {error.strerror}; {remedy}') from error


def _is_whole(value: Any, low: int = 1, high: int = 2 ** 63 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float = -1000, high: float = 1000) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_list(value: Any, length: int, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(holds, value))


def _is_size(value: Any) -> bool:
    return _is_whole(value, high=8192)


def _is_file(value: Any) -> bool:
    return (
        isinstance(value, dict) and isinstance(value.get('name'), str) and isinstance(value.get('sha256'), str)
        and re.fullmatch(r'\w[\w.-]*', value['name']) is not None and _is_whole(value.get('size'), 0))


def _is_cost(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_whole(value.get(key)) for key in ('backbone_flops', 'total_flops'))


_RULES: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    'format_version': lambda value, manifest: _is_whole(value, 1, FORMAT_VERSION),
    'runtime': lambda value, manifest: value in ('onnx', 'torch'),
    'resolutions': lambda value, manifest: (
        isinstance(value, list) and len(value) > 0 and all(map(_is_size, value))),
    'router': lambda value, manifest: value in ('predictor', 'cascade'),
    'thresholds': lambda value, manifest: _is_list(
        value, len(manifest['resolutions']) - 1 if manifest['router'] == 'cascade' else 0,
        lambda threshold: threshold is None or _is_number(threshold)),
    'precision': lambda value, manifest: value in PRECISIONS,
    'predictor_size': lambda value, manifest: _is_size(value),
    'in_chans': lambda value, manifest: _is_size(value),
    'num_classes': lambda value, manifest: _is_whole(value, 0),
    'labels': lambda value, manifest: _is_list(value, manifest['num_classes'], lambda label: isinstance(label, str)),
    'costs': lambda value, manifest: _is_list(value, len(manifest['resolutions']), _is_cost),
    'files.predictor': lambda value, manifest: (
        value is None or (_is_file(value) and manifest['router'] == 'predictor')),
    'files.branches': lambda value, manifest: _is_list(value, len(manifest['resolutions']), _is_file),
    'preprocessing.input_size': lambda value, manifest: (
        _is_list(value, 3, _is_size)
        and value == [manifest['in_chans'], manifest['resolutions'][0], manifest['resolutions'][0]]),
    'preprocessing.crop_pct': lambda value, manifest: _is_number(value, 0.1, 2),
    'preprocessing.crop_mode': lambda value, manifest: value in ('center', 'squash', 'border'),
    'preprocessing.interpolation': lambda value, manifest: (
        isinstance(value, str) and value.upper() in Image.Resampling.__members__),
    'preprocessing.mean': lambda value, manifest: _is_list(value, manifest['in_chans'], _is_number),
    'preprocessing.std': lambda value, manifest: _is_list(
        value, manifest['in_chans'], lambda number: _is_number(number, 1e-3)),
}
"""What the runners use of a manifest, each after what it is compared with."""


def _find_flaw(manifest: dict[str, Any]) -> str | None:
    """What is missing in a manifest, or is not as an export writes it."""
    for name, holds in _RULES.items():
        group, _, key = name.rpartition('.')
        values = manifest.get(group) if group else manifest
        if not isinstance(values, dict) or key not in values:
            return f'it has no {name}'
        if not holds(values[key], manifest):
            return f'its {name} is not as an export writes it'
    return None
