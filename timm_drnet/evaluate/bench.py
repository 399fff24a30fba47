"""Benchmark: a DRNet beside itself held at each resolution, and beside the authors' way of running it.

Times mean little by themselves, so every figure stands beside that of the backbone at the largest resolution, taken in
the same run, batch by batch in turn, by the same engine on the same threads. Engines take turns as well: what slows the
machine down for a while slows them all.
"""

import importlib.metadata
import platform
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch

from ..cascade.climb import climb
from ..core.routing import route
from ..cost.flops import CostRow
from ..deploy.stopwatch import seconds_of
from .engines import Engine

_DYNAMIC = 'dynamic'
_ROUTING = 'routing'


@dataclass(frozen=True)
class Batch:
    """Images, and the resolutions that they run at."""

    images: torch.Tensor
    """(B, C, S, S)"""
    choice: torch.Tensor
    """(B,) int64"""
    weight: float
    """Its part in the averages."""


@dataclass(frozen=True)
class Timing:
    """What one way of running took for a batch, in milliseconds."""

    name: str
    """``dynamic``, ``held at N px`` or ``all branches``."""
    milliseconds: float
    """Average over the batches of the median over the repeats."""
    p10: float
    """Percentiles over all repeats."""
    p50: float
    p90: float
    p99: float
    images_per_second: float
    flops_ratio: float
    """FLOPs over those of the backbone at the largest resolution."""
    time_ratio: float
    """Time over that of the backbone at the largest resolution."""
    peak_memory: int | None
    """Bytes of the process, or of the CUDA device, without what other engines hold; None where the system does not
    tell."""


@dataclass(frozen=True)
class Benchmark:
    """What `bench` measured."""

    batch_size: int
    shares: tuple[float, ...]
    """Of the images that ran at each resolution."""
    timings: tuple[Timing, ...]
    """The model itself, held at each of its resolutions, and all branches on every image."""
    routing: float
    """Time for sorting, splitting and restoring the batch alone, as a fraction of the model's."""
    speedup: float
    """Throughput of the model over its throughput by the first of the engines measured with this one."""


def mixed_batches(images: torch.Tensor, mix: Sequence[float]) -> list[Batch]:
    """Give images to the resolutions in given shares.

    Args:
        images: (B, C, S, S)
        mix: Share of each resolution, largest first; they add up to 1.

    Returns:
        One batch with the nearest whole numbers of images; for a single image one batch for each resolution, weighted
        by its share.
    """
    if len(images) == 1:
        return [Batch(images, torch.tensor([j], device=images.device), share) for j, share in enumerate(mix) if share]
    counts = [int(share * len(images)) for share in mix]
    rests = sorted(range(len(mix)), key=lambda j: counts[j] - mix[j] * len(images))
    for j in rests[:len(images) - sum(counts)]:
        counts[j] += 1
    choice = torch.repeat_interleave(torch.arange(len(mix)), torch.tensor(counts))
    order = torch.randperm(len(choice), generator=torch.Generator().manual_seed(0))
    return [Batch(images, choice[order].to(images.device), 1.0)]


@torch.inference_mode()
def bench(
        engines: Mapping[str, Callable[[], Engine]],
        batches: Sequence[Batch],
        costs: Sequence[CostRow],
        repeats: int = 20,
        with_predictor: bool = True,
        progress: Callable[[], object] = lambda: None,
        thresholds: Sequence[float | None] | None = None,
) -> dict[str, Benchmark]:
    """Measure engines side by side on batches of one size.

    Args:
        engines: What makes each engine ready, by its name.
        batches: The batches.
        costs: The model's cost table.
        repeats: How often each batch is run in each way by each engine, in turn.
        with_predictor: Whether the predictor runs, and its FLOPs count; not in the pretrain stage, nor in a cascade.
        progress: Called after each repeat of a batch by an engine.
        thresholds: Of a cascade; its images climb to where the batches say, and every rung that ran counts.

    Returns:
        The measurement of each engine.
    """
    device = batches[0].images.device
    ways: dict[str, dict[str, Callable[[Batch], object]]] = {}
    memory: dict[str, dict[str, int | None]] = {}
    at_first = _memory_in_use(device)
    for name, prepare in engines.items():
        others = _memory_in_use(device) - at_first  # what the engines before this one hold is not its own
        ways[name] = _ways(prepare(), batches[0], costs, with_predictor, thresholds)
        memory[name] = {
            way: _peak_memory(partial(run, batches[0]), device, others)
            for way, run in ways[name].items() if way != _ROUTING}

    seconds: dict[str, dict[str, list[list[float]]]] = {
        name: {way: [[] for _ in batches] for way in ways[name]} for name in ways}
    for repeat in range(repeats + 1):  # the first only warms up
        for i, batch in enumerate(batches):
            for name in ways:
                ways[name][_DYNAMIC](batch)  # brings its weights into the caches; the threads of others fall asleep
                for way, run in ways[name].items():
                    taken = seconds_of(partial(run, batch), device)
                    if repeat:
                        seconds[name][way][i].append(taken)
                progress()

    shares = _shares(batches, len(costs))
    predictor = costs[0].predictor_flops if with_predictor else 0
    paid = [row.backbone_flops + predictor if thresholds is None else row.total_flops for row in costs]
    flops = [
        sum(share * cost for share, cost in zip(shares, paid, strict=True)),
        *(row.backbone_flops for row in costs),
        sum(row.backbone_flops for row in costs) + predictor,
    ]
    size = len(batches[0].images)
    weights = [batch.weight for batch in batches]
    measured: dict[str, Benchmark] = {}
    first = 0.0
    for name, times in seconds.items():
        average = {way: _average([statistics.median(t) for t in times[way]], weights) for way in times}
        first = first or average[_DYNAMIC]
        timings = []
        for way, count in zip(memory[name], flops, strict=True):
            p10, p50, p90, p99 = _percentiles(times[way], weights)
            timings.append(Timing(
                way, 1e3 * average[way], 1e3 * p10, 1e3 * p50, 1e3 * p90, 1e3 * p99, size / average[way],
                count / costs[0].backbone_flops, average[way] / average[_held_at(costs[0])], memory[name][way]))
        measured[name] = Benchmark(
            size, shares, tuple(timings), average[_ROUTING] / average[_DYNAMIC], first / average[_DYNAMIC])
    return measured


def _ways(
        engine: Engine,
        batch: Batch,
        costs: Sequence[CostRow],
        with_predictor: bool,
        thresholds: Sequence[float | None] | None,
) -> dict[str, Callable[[Batch], object]]:
    """What an engine is measured at."""

    def dynamic(batch: Batch) -> None:
        if thresholds is not None:
            _climb(batch, thresholds, lambda j, part: engine.forward_at(_take(batch, part), j))
            return
        if with_predictor:
            engine.predict_resolution(batch.images)  # what it says is not what counts here
        engine.forward_at(batch.images, batch.choice)

    def held(index: int, batch: Batch) -> None:
        engine.forward_at(batch.images, index)

    def all_branches(batch: Batch) -> None:
        """As the authors evaluate: every branch on every image, and a sum over them with the choice as weights."""
        if with_predictor:
            engine.predict_resolution(batch.images)
        h = torch.nn.functional.one_hot(batch.choice, len(costs))
        sum(h[:, j:j + 1] * engine.forward_at(batch.images, j) for j in range(len(costs)))

    logits = engine.forward_at(batch.images, 0)

    def routing(batch: Batch) -> None:
        if thresholds is not None:
            _climb(batch, thresholds, lambda j, part: logits[:len(_take(batch, part))])
            return
        route(batch.images, batch.choice, len(costs), lambda j, part: logits[:len(part)])

    return {
        _DYNAMIC: dynamic,
        **{_held_at(row): partial(held, j) for j, row in enumerate(costs)},
        'all branches': all_branches,
        _ROUTING: routing,
    }


def _climb(
        batch: Batch,
        thresholds: Sequence[float | None],
        run: Callable[[int, torch.Tensor], torch.Tensor],
) -> None:
    """A cascade with all that it does, in which images stop where the batch says and not where they are sure."""

    def run_and_pretend(j: int, part: torch.Tensor) -> torch.Tensor:
        logits = run(j, part)
        sure = torch.zeros_like(logits)
        sure[:, 0] = torch.where(batch.choice[part] == j, 1e4, 0)
        return sure

    certain = [None if threshold is None else 1.0 for threshold in thresholds]
    climb(torch.arange(len(batch.images), device=batch.images.device), certain, run_and_pretend)


def _take(batch: Batch, part: torch.Tensor) -> torch.Tensor:
    return batch.images[part] if len(part) < len(batch.images) else batch.images


def _held_at(row: CostRow) -> str:
    return f'held at {row.resolution} px'


def describe_machine(device: torch.device, threads: int) -> dict[str, str | int]:
    """The particulars that a time depends on."""
    versions = {}
    for package in ('torch', 'onnxruntime', 'openvino'):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    names = [line.partition(':')[2].strip() for line in _lines('/proc/cpuinfo') if line.startswith('model name')]
    return {
        'processor': names[0] if names else platform.processor() or platform.machine(),
        'cores': len(names) or torch.get_num_threads(),
        'threads': threads,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device),
        'system': platform.platform(),
        'python': platform.python_version(),
        **versions,
    }


def _shares(batches: Sequence[Batch], num_resolutions: int) -> tuple[float, ...]:
    total = [0.0] * num_resolutions
    for batch in batches:
        for j, n in enumerate(torch.bincount(batch.choice, minlength=num_resolutions).tolist()):
            total[j] += batch.weight * n
    return tuple(n / sum(total) for n in total)


def _percentiles(seconds: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, ...]:
    """Percentiles of times, each of which counts as much as its batch does."""
    weighted = sorted((t, w / len(times)) for times, w in zip(seconds, weights, strict=True) for t in times)
    below = list(accumulate(w for _, w in weighted))
    return tuple(weighted[bisect_left(below, wanted * below[-1] - 1e-9)][0] for wanted in (0.1, 0.5, 0.9, 0.99))


def _average(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def _peak_memory(run: Callable[[], object], device: torch.device, others: int) -> int | None:
    """The most memory in use while something runs, weights and all that was there before included, less some bytes."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - others
    try:
        Path('/proc/self/clear_refs').write_text('5')  # Linux: start counting the peak from here
    except OSError:
        return None
    run()
    return _process_memory('VmHWM') - others


def _memory_in_use(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == 'cuda' else _process_memory('VmRSS')


def _process_memory(which: str) -> int:
    """Bytes, 0 where the system does not tell."""
    found = [line.split()[1] for line in _lines('/proc/self/status') if line.startswith(which)]
    return 1024 * int(found[0]) if found else 0


def _lines(path: str) -> Iterator[str]:
    try:
        yield from Path(path).read_text(encoding='utf-8').splitlines()
    except OSError:
        return
