"""Precision: the float32 programs of an export, rewritten in another one and checked."""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .arrays import Array, resize
from .half_precision import store_half
from .quantization import quantize
from .runtimes import load

_TOLERANCE = 0.1
"""How much outputs in half precision may differ, as a fraction of the largest: sums of many rounded products do."""
_FEWEST_TO_SPLIT = 32
_MOST_HELD_OUT = 100
_LEAST_AGREEMENT = 0.8
"""Of the answers in int8 with those in float32: below this, something is wrong."""


def check_calibration(precision: str, calibrate: torch.Tensor | None, num_classes: int) -> None:
    """Check the arguments of an export that belong to its precision.

    Raises:
        ValueError: If images are missing, or not in use.
    """
    if (calibrate is not None) != (precision == 'int8'):
        raise ValueError('Invalid calibrate: precision int8 needs images, and others take none.')
    if precision == 'int8' and not num_classes:
        raise ValueError('Invalid precision int8: what it loses is measured on answers; use bf16 without a classifier.')


def lower_files(
        folder: Path,
        entries: Sequence[dict[str, Any]],
        precision: str,
        calibrate: torch.Tensor | None,
) -> dict[str, int] | None:
    """Rewrite the programs of an export, and their entries in the manifest.

    Args:
        folder: With ONNX files in float32.
        entries: Of all files; they are changed.
        precision: ``bf16``, ``fp16`` or ``int8``.
        calibrate: Images for int8, (N, C, S, S), as for `timm_drnet.deploy.export.export_model`.

    Returns:
        Numbers of images that int8 was made with, for the manifest; None for others.

    Raises:
        ValueError: If a program does not bear the precision.
    """
    images = held_out = None
    if calibrate is not None:
        images, held_out = _split(calibrate.float().cpu().numpy())
    for entry in entries:
        path = folder / entry['name']
        if images is None or held_out is None:
            content = _halve(path, precision)
        else:
            content, described = _quantize(path, resize(images, entry['side']), resize(held_out, entry['side']))
            entry.update(described)
        path.write_bytes(content)
        entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return None if images is None or held_out is None else {'images': len(images), 'held_out': len(held_out)}


def _split(images: Array) -> tuple[Array, Array]:
    """Images to measure ranges on, and images to measure losses on."""
    held_out = np.zeros(len(images), bool)
    if len(images) >= _FEWEST_TO_SPLIT:
        held_out[3:4 * _MOST_HELD_OUT:4] = True  # from all over, as files of a class lie together
    return images[~held_out], images[held_out]


def _halve(path: Path, precision: str) -> bytes:
    content = path.read_bytes()
    lowered = store_half(content, precision)
    before, after = load(content, 'onnxruntime'), load(lowered, 'onnxruntime')
    x = np.random.default_rng(0).standard_normal((2, *before.shape[0])).astype(np.float32)
    wanted = before(x)
    difference, largest = np.abs(after(x) - wanted).max(), np.abs(wanted).max()
    if not difference <= _TOLERANCE * largest:  # a difference may also be no number
        raise ValueError(
            f'Invalid precision {precision}: outputs of {path.name} of up to {largest:.2g} would differ by'
            f' {difference:.2g}. Use bf16 or float32.')
    return lowered


def _quantize(path: Path, images: Array, held_out: Array) -> tuple[bytes, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        quantized = quantize(path.read_bytes(), images, held_out, Path(scratch))
    if quantized.agreement is not None and quantized.agreement < _LEAST_AGREEMENT:
        raise ValueError(
            f'Invalid precision int8: {path.name} answers otherwise than in float32 for'
            f' {1 - quantized.agreement:.0%} of the images held out. Use bf16, or more images, like those to come.')
    return quantized.content, {
        'float_operators': list(quantized.float_operators), 'agreement': quantized.agreement,
        'divergence': quantized.divergence}
