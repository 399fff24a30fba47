"""Any bytes as the manifest of an export: refused by its one kind of error, or fit for what the runners do with it."""

import copy
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from timm_drnet.deploy.manifest import FORMAT, MANIFEST, InvalidExportError, manifest_digest, read_file, read_manifest
from timm_drnet.deploy.preprocessing import prepare

MODULES = ['timm_drnet.deploy.manifest']
"""Whose branches guide the fuzzer."""

_FOLDER = Path(tempfile.mkdtemp(prefix='fuzz'))
(_FOLDER / 'branch_64.onnx').write_bytes(b'a program')

_FILE = {'name': 'branch_64.onnx', 'size': 9, 'sha256': '0' * 64}
_PREPROCESSING = {
    'input_size': [3, 64, 64], 'crop_pct': 0.9, 'crop_mode': 'center', 'interpolation': 'bicubic',
    'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]}
_CASCADE = {
    'format': FORMAT, 'format_version': 2, 'runtime': 'onnx', 'resolutions': [64, 48], 'router': 'cascade',
    'thresholds': [0.8], 'precision': 'float32', 'predictor_size': 32, 'in_chans': 3, 'num_classes': 2,
    'labels': ['a', 'b'], 'costs': [{'backbone_flops': 9, 'total_flops': 10}] * 2,
    'files': {'predictor': None, 'branches': [_FILE, _FILE]},
    'preprocessing': _PREPROCESSING,
}
_PREDICTOR = {
    **{key: value for key, value in _CASCADE.items() if key not in ('router', 'thresholds', 'precision')},
    'format_version': 1, 'files': {'predictor': _FILE, 'branches': [_FILE, _FILE]},
    'preprocessing': {**_PREPROCESSING, 'crop_mode': 'border'}}

SEEDS = [json.dumps(seed).encode() for seed in (_CASCADE, _PREDICTOR)]

_VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 64, 1000, 8192, 8193, 2 ** 63, 10 ** 400, 0.0, -0.0, 0.1, 64.0, 1e-320, 1e308,
    float('nan'), float('inf'), '', 'a', '\0', '\n', '..', '/', 'a/b', 'é', '\ud800', 'a' * 300, 'onnx', 'torch',
    'predictor', 'manifest.json', 'BICUBIC', 'squash', 'border', [], [[]], {}, [None], {'': None})


def mutate(data: bytes, rng: random.Random) -> bytes | None:
    """Another value somewhere in a manifest; None for what is no JSON object."""
    try:
        manifest = json.loads(data)
        list(_places(manifest))  # not too deep for Python
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict):
        return None
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not (places := list(_places(manifest))):
            break
        node, key = rng.choice(places)
        action = rng.randrange(5)
        if action == 0:
            del node[key]
        elif action == 1 and isinstance(node, list):
            node.insert(key, copy.deepcopy(rng.choice((*node, *_VALUES))))
        elif action == 2 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = rng.choice((node[key] + 1, -node[key], float(node[key]) if abs(node[key]) < 1e300 else 0))
        else:
            node[key] = copy.deepcopy(rng.choice(_VALUES))
    return json.dumps(manifest).encode()


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """All values in JSON, as what they are in and where."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


def check(data: bytes) -> None:
    """Read a manifest as both runners do; any error but the documented one is a finding.

    A checksum is only as right as who wrote it, so that JSON objects get the one that fits.
    """
    path = _FOLDER / MANIFEST
    path.write_bytes(data)
    _read()
    try:
        manifest = json.loads(data)
        if isinstance(manifest, dict):
            manifest['sha256'] = manifest_digest(manifest)
            path.write_text(json.dumps(manifest))
            _read()
    except (ValueError, RecursionError):
        pass


def _read() -> None:
    for runtime in ('onnx', 'torch'):
        try:
            manifest = read_manifest(_FOLDER, runtime)
        except InvalidExportError as error:
            _check_message(error)
            continue
        files = manifest['files']
        for entry in (files['predictor'], *files['branches']):
            try:
                assert entry is None or isinstance(read_file(_FOLDER, entry), bytes)
            except InvalidExportError as error:
                _check_message(error)
        assert all(type(side) is int for side in manifest['preprocessing']['input_size'])
        if manifest['in_chans'] in (1, 3) and max(manifest['resolutions']) <= 64:  # as far as memory is no question
            side = manifest['resolutions'][0]
            image = prepare(Image.new('RGB', (9, 7)), manifest['preprocessing'])
            assert image.shape == (manifest['in_chans'], side, side)


def _check_message(error: InvalidExportError) -> None:
    text = str(error).replace(str(_FOLDER), '')
    assert text.isprintable(), text
    assert len(text) < 500, text
