"""Latency tables: what each candidate resolution costs on this device, in milliseconds that a clock shows.

FLOPs are the same everywhere; what they take is not. The table is for choosing between resolutions: with it as the
model's cost, the FLOPs loss and the dial weigh milliseconds.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..core.drnet import DRNet
    from ..deploy.deployed import DeployedDRNet


@dataclass(frozen=True)
class LatencyRow:
    """The time that one image takes at one candidate resolution, in milliseconds."""

    resolution: int
    """Side of the image in pixels."""
    backbone_ms: float
    """The backbone, with the resize to the resolution."""
    predictor_ms: float
    """The resolution predictor, the same at every resolution."""
    total_ms: float
    """Backbone and predictor."""
    fraction: float
    """Time of the backbone as a fraction of that at the largest resolution."""


def latency_table(
        model: 'DRNet | DeployedDRNet',
        batch_size: int = 8,
        repeats: int = 10,
) -> tuple[LatencyRow, ...]:
    """Measure what every candidate resolution takes on the model's device, largest first.

    Resolutions take turns, so that what slows the machine down for a while slows all of them. Other work on the machine
    still shows: measure on an idle one.

    Args:
        model: A DRNet, or one made for inference by ``model.deploy()``. It is run in eval mode and is not changed.
        batch_size: Images in a batch. What one image takes depends on it.
        repeats: How often each is run; the median counts.

    Returns:
        One row per candidate.

    Raises:
        ValueError: If an argument is out of range, or the model has no weights to run with.
    """
    for name, value in (('batch_size', batch_size), ('repeats', repeats)):
        if value < 1:
            raise ValueError(f'Invalid {name} {value}: use at least 1.')
    tensors = [*model.parameters(), *model.buffers()]
    weight = tensors[0]
    if weight.is_meta:
        raise ValueError('The model is on the meta device: give it weights before its latency is measured.')
    # A twin with the same weights, as neither the mode nor the counts of the model may change.
    twin = copy.deepcopy(model, {id(t): t for t in tensors}).eval() if model.training else model
    x = torch.zeros(
        batch_size, model.in_chans, model.resolutions[0], model.resolutions[0], device=weight.device,
        dtype=weight.dtype)
    ways: list[Callable[[], object]] = [partial(twin.forward_at, x, j) for j in range(len(model.resolutions))]
    ways.append(partial(twin.predict_resolution, x))
    seconds: list[list[float]] = [[] for _ in ways]
    with torch.inference_mode(), torch.autocast(weight.device.type, enabled=False):  # may be called within a step
        for repeat in range(repeats + 1):  # the first only warms up
            for way, times in zip(ways, seconds, strict=True):
                taken = measure(way, weight.device)
                if repeat:
                    times.append(taken)
    *backbone, predictor = (1e3 * statistics.median(times) / batch_size for times in seconds)
    return tuple(
        LatencyRow(r, ms, predictor, ms + predictor, ms / backbone[0])
        for r, ms in zip(model.resolutions, backbone, strict=True))


def measure(run: Callable[[], object], device: torch.device) -> float:
    """Time a call, with all the work that it starts on a device.

    Args:
        run: What to call.
        device: Where its work is done.

    Returns:
        Seconds.
    """
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
