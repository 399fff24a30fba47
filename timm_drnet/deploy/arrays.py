"""Images, choices and confidence as NumPy arrays: what the runner of an export checks and computes between its models.

``timm-drnet export`` puts a copy of this file beside the runner.
"""

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]


def check_images(x: Array, channels: int) -> Array:
    """Images in float32, (B, C, S, S), or a ValueError that says what else was given."""
    x = np.asarray(x)
    if x.ndim != 4 or x.shape[0] == 0 or x.shape[2] != x.shape[3] or x.shape[2] == 0:
        raise ValueError(
            f'Invalid input of shape {x.shape}: use a batch of square images, (B, C, S, S), one at least; crop or pad'
            ' others.')
    if x.shape[1] != channels:
        raise ValueError(f'Invalid input of {x.shape[1]} channels: the model takes {channels}.')
    if x.dtype.kind != 'f':
        raise ValueError(f'Invalid input of type {x.dtype}: use normalized images in float32, see prepare().')
    if not np.isfinite(x.sum(dtype=np.float32)):  # activations of OpenVINO make a zero of what is no number
        raise ValueError('Invalid input: some of its values are not finite.')
    return x.astype(np.float32, copy=False)


def check_choices(choice: int | NDArray[np.integer[Any]], number: int, candidates: int) -> NDArray[np.integer[Any]]:
    """The choices of a number of images, (B,), or a ValueError where they are not the indices of candidates."""
    choices = np.full(number, choice) if isinstance(choice, int | np.integer) else np.asarray(choice)
    if choices.shape != (number,) or choices.dtype.kind not in 'iu':
        raise ValueError(
            f'Invalid choice of shape {choices.shape} and type {choices.dtype}: use one integer for each of the'
            f' {number} images.')
    invalid = choices[(choices < 0) | (choices >= candidates)]
    if len(invalid):
        raise ValueError(
            f'Invalid choice {invalid[0]}: there are {candidates} candidates, counted from 0. A router gives -1 where'
            ' its scores are not finite, as those of damaged weights, or of half precision that overflows.')
    return choices


def confidence(logits: Array) -> Array:
    """The largest softmax probability of each row of logits, (B, num_classes), as (B,) float32."""
    logits = logits.astype(np.float32, copy=False)
    return np.asarray(1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))


def resize(x: Array, size: int) -> Array:
    """Resize square images bilinearly without antialiasing, as PyTorch's ``F.interpolate``.

    ONNX's own Resize rounds the positions differently, which moves values by up to 1e-4 and can tip a choice.

    Args:
        x: Images, (B, C, S, S).
        size: The new side in pixels.

    Returns:
        Images, (B, C, size, size).
    """
    if x.shape[-1] == size:
        return x
    low, high, low_weight, high_weight = _neighbours(x.shape[-1], size)
    out = np.empty((*x.shape[:2], size, size), np.float32)
    for image, target in zip(x, out, strict=True):  # one by one, as their rows then stay in the cache
        rows = image.take(low, axis=1)
        rows *= low_weight[:, None]
        below = image.take(high, axis=1)
        below *= high_weight[:, None]
        rows += below
        np.multiply(rows.take(low, axis=2), low_weight, out=target)
        right = rows.take(high, axis=2)
        right *= high_weight
        target += right
    return out


@lru_cache(maxsize=64)
def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]:
    """For each new pixel of a line its two old neighbours and their weights."""
    scale = np.float32(old) / np.float32(new)
    # Computed exactly and rounded once, like the fused multiply-add that PyTorch uses.
    position = (np.float64(scale) * (np.arange(new) + 0.5) - 0.5).astype(np.float32).clip(0)
    low = position.astype(np.int64).clip(max=old - 1)
    weight = (position - low.astype(np.float32)).astype(np.float32)
    return low, (low + 1).clip(max=old - 1), 1 - weight, weight
