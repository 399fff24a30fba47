"""Latency tables: what each candidate resolution costs on this device, in milliseconds that a clock shows.

FLOPs are the same everywhere; what they take is not. The table is for choosing between resolutions: with it as the
model's cost, the FLOPs loss and the dial weigh milliseconds.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..core.drnet import DRNet
from ..deploy.deployed import DeployedDRNet
from ..deploy.plain_view import plain_view
from ..deploy.stopwatch import warm_seconds_of
from .flops import paid


@dataclass(frozen=True)
class LatencyRow:
    """The time that one image takes at one candidate resolution, in milliseconds."""

    resolution: int
    """Side of the image in pixels."""
    backbone_ms: float
    """The backbone, with the resize to the resolution."""
    predictor_ms: float
    """The resolution predictor, the same at every resolution; 0 where none is in use."""
    total_ms: float
    """All that an image takes which is classified there: backbone and predictor, or the rungs of a cascade up to it."""
    fraction: float
    """Time of the backbone as a fraction of that at the largest resolution."""


def latency_table(
        model: DRNet | DeployedDRNet,
        batch_size: int | None = None,
        repeats: int = 5,
) -> tuple[LatencyRow, ...]:
    """Measure what every candidate resolution takes on the model's device, largest first.

    Resolutions take turns, so that what slows the machine down for a while slows all of them. Other work on the machine
    still shows: measure on an idle one.

    Args:
        model: A DRNet, or one made for inference by ``model.deploy()``. It is run in eval mode, in its own data type
            and memory format, or under autocast where the caller is, and is not changed.
        batch_size: Images in a batch. What one image takes depends on it. Default: 8 on a processor; 128 on an
            accelerator, where small batches take about the same time at every resolution.
        repeats: How often each is measured; the median counts.

    Returns:
        One row per candidate.

    Raises:
        ValueError: If an argument is out of range, or the model has no weights to run with.
    """
    weight = next(model.parameters())
    if batch_size is None:
        batch_size = 8 if weight.device.type == 'cpu' else 128
    for name, value in (('batch_size', batch_size), ('repeats', repeats)):
        if value < 1:
            raise ValueError(f'Invalid {name} {value}: use at least 1.')
    if weight.is_meta:
        raise ValueError('The model is on the meta device: give it weights before its latency is measured.')
    x = torch.zeros(
        batch_size, model.in_chans, model.resolutions[0], model.resolutions[0], device=weight.device,
        dtype=weight.dtype)
    if any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in model.parameters()):
        x = x.contiguous(memory_format=torch.channels_last)
    view = plain_view(model)  # as neither the mode nor the counts of the model may change
    runs: list[Callable[[], object]] = [partial(view.forward_at, x, j) for j in range(len(model.resolutions))]
    if model.args.uses_predictor:
        runs.append(partial(view.predict_resolution, x))
    kind = weight.device.type
    autocast = torch.autocast(  # that of the caller, whose cache must not be given weights without gradients
        kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), cache_enabled=False)
    with torch.inference_mode(), autocast:
        rounds = [[warm_seconds_of(run, x.device) for run in runs] for _ in range(repeats)]
    found = [1e3 * statistics.median(times) / batch_size for times in zip(*rounds, strict=True)]
    backbone, predictor = found[:len(model.resolutions)], sum(found[len(model.resolutions):])
    return tuple(
        LatencyRow(r, ms, predictor, total, ms / backbone[0])
        for r, ms, total in zip(model.resolutions, backbone, paid(model.args, backbone, predictor), strict=True))
