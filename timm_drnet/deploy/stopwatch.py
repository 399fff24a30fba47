"""A stopwatch for what runs on any device.

PyTorch's `Timer` runs everything twice before it begins, and its import looks for CUDA's compiler and complains.
"""

import time
from collections.abc import Callable

import torch


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes, with all that it started on a device."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def warm_seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes right after another one, which fills the caches with what it needs."""
    run()
    return seconds_of(run, device)


def _wait(device: torch.device) -> None:
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)
