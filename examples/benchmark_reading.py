"""Measure the whole way from JPEG files to labels: a DRNet against the plain backbone, decoded whole or small.

    python examples/benchmark_reading.py PHOTOGRAPHS --work FOLDER --repeats 0    # only prepares the folder
    python examples/benchmark_reading.py PHOTOGRAPHS --work FOLDER --output reading.json

A worker on each core reads its photographs, runs them and names the best class of each. The plain backbone is the same
model held at its largest resolution, in the same engine and by the same workers. Photographs are decoded whole, as
Pillow does unless it is told otherwise, or as small as a reducing gap allows, the package's own and 1. The ways take
turns; each number is a median over the repeats.

The photographs are made from those given: enlarged, with the noise of a sensor, at JPEG quality 90, so that a file of
12 megapixels has about 3 MB, as those of cameras. Enlarging does not add details, which takes the decoder no time.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import timm_drnet
from timm_drnet.bulk.grouping import Routed, batched, classify_grouped
from timm_drnet.cli.common import load_model
from timm_drnet.data.files import find_images
from timm_drnet.data.labels import class_labels
from timm_drnet.data.pixels import REDUCING_GAP, open_image
from timm_drnet.data.reading import image_loader, read_some
from timm_drnet.deploy.export import export_model
from timm_drnet.deploy.onnx_engine import OnnxEngine, split_name

ENGINES = ('deployed', 'onnxruntime', 'onnxruntime-int8', 'openvino', 'openvino-bf16', 'openvino-int8')
SIZES = {'12 megapixels': (24, lambda w, h: (12e6 / (w * h)) ** 0.5), '400 px': (96, lambda w, h: 400 / min(w, h))}
"""How many photographs of a size, and by what factor one is enlarged."""
WAYS = {
    f'{name}, {"decoded whole" if gap is None else f"gap {gap:g}"}': (routed, gap)
    for routed, name in enumerate(('plain', 'DRNet')) for gap in (None, REDUCING_GAP, 1.0)}
"""Whether images are routed, and the reducing gap that they are read with."""

_PLAIN = next(iter(WAYS))

_NOISE = 6.0  # standard deviation, of 255

_model: timm_drnet.DRNet
_engines: dict[str, Routed]
_labels: tuple[str, ...]


def enlarged(image: Image.Image, factor: float, seed: int) -> Image.Image:
    """A larger photograph, with the noise of a sensor.

    Args:
        image: In RGB.
        factor: By which its sides grow.
        seed: Of the noise.
    """
    width, height = (round(side * factor) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.int16)
    noise = _NOISE * np.random.default_rng(seed).standard_normal((height, width, 1), np.float32)
    return Image.fromarray((pixels + noise.astype(np.int16)).clip(0, 255).astype(np.uint8))


def photographs(sources: Sequence[Path], folder: Path, size: str) -> list[Path]:
    """Make photographs of a size, or find those made before.

    Args:
        sources: Image files.
        folder: Where the photographs are.
        size: One of `SIZES`.
    """
    number, factor = SIZES[size]
    folder /= size.replace(' ', '-')
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{n:03d}.jpg' for n in range(number)]
    for n, path in enumerate(paths):
        if path.exists():
            continue
        image = open_image(sources[n * len(sources) // number])
        enlarged(image, factor(*image.size), n).save(path, quality=90)
    return paths


def export(model: timm_drnet.DRNet, engine: str, folder: Path, sources: Sequence[Path]) -> None:
    """Export a model for an engine, unless that was done before."""
    precision = split_name(engine)[1]
    if engine == 'deployed' or (folder / precision).exists():
        return
    images = read_some(sources, image_loader(model), 400, []) if precision == 'int8' else None
    export_model(model, folder / precision, timm_drnet.cost_table(model), precision=precision, calibrate=images)


def start(name: str, engines: Sequence[str], folder: Path) -> None:
    """Make a worker ready.

    Args:
        name: Of the model.
        engines: Some of `ENGINES`.
        folder: Of the exports.
    """
    global _model, _engines, _labels
    torch.set_num_threads(1)
    _model = load_model(name).eval()
    _labels = class_labels(_model)
    _engines = {
        engine: _model.deploy() if engine == 'deployed' else OnnxEngine(
            folder / split_name(engine)[1], _model, engine, threads=1)
        for engine in engines}


def work(paths: Sequence[Path], engine: str, way: str, batch_size: int) -> list[str]:
    """Name what is in image files.

    Args:
        paths: The files.
        engine: One of those that the worker has.
        way: One of `WAYS`.
        batch_size: Images that run together.
    """
    routed, gap = WAYS[way]
    images = map(image_loader(_model, reducing_gap=gap), paths)
    model = _engines[engine]
    with torch.inference_mode():
        if routed:
            _, logits = classify_grouped(model, images, batch_size)
        else:
            logits = torch.cat([model.forward_at(torch.stack(batch), 0) for batch in batched(images, batch_size)])
    best = logits.softmax(dim=1).topk(1, dim=1)
    return [_labels[n] for n in best.indices[:, 0].tolist()]


def measure(
        pool: ProcessPoolExecutor,
        paths: Sequence[Path],
        workers: int,
        **how: Any,
) -> tuple[float, list[str]]:
    """Seconds from files to labels, and the labels, in the order of the workers' photographs."""
    units = [paths[n::workers] for n in range(workers)]
    began = time.perf_counter()
    labels = [label for found in pool.map(partial(work, **how), units) for label in found]
    return time.perf_counter() - began, labels


def main() -> int:
    """Prepare, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('photographs', metavar='FOLDER', help='photographs to make those from that are measured with')
    add('--work', metavar='FOLDER', type=Path, required=True, help='keeps photographs and exports for the next run')
    add('--model', default=timm_drnet.DEFAULT_MODEL, help='(%(default)s)')
    add('--engine', nargs='+', choices=ENGINES, default=['deployed', 'openvino-int8'], help='(deployed openvino-int8)')
    add('--batch-size', metavar='N', type=int, default=32, help='(%(default)s)')
    add('--workers', metavar='N', type=int, default=2, help='one for each core to use (%(default)s)')
    add('--repeats', metavar='N', type=int, default=5, help='(%(default)s)')
    add('--output', metavar='FILE', type=Path, help='where to write the numbers, as JSON')
    args = parser.parse_args()
    sources = find_images([args.photographs])
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.workers])  # workers inherit it
    made = {size: photographs(sources, args.work, size) for size in SIZES}
    model = load_model(args.model).eval()
    for engine in args.engine:
        export(model, engine, args.work, sources)
    if not args.repeats:
        return 0
    result: dict[str, Any] = {
        'model': args.model, 'batch_size': args.batch_size, 'workers': args.workers, 'repeats': args.repeats,
        'machine': _machine(), 'torch': torch.__version__, 'sizes': {}}
    with ProcessPoolExecutor(
            args.workers, get_context('spawn'), start, (args.model, args.engine, args.work)) as pool:
        for size, paths in made.items():
            seconds: dict[tuple[str, str], list[float]] = {(engine, way): [] for engine in args.engine for way in WAYS}
            labels: dict[tuple[str, str], list[str]] = {}
            for n in range(1 + args.repeats):
                for engine, way in seconds:
                    took, labels[engine, way] = measure(
                        pool, paths, args.workers, engine=engine, way=way, batch_size=args.batch_size)
                    if n:  # the first warms up, the disk's cache too
                        seconds[engine, way].append(took)
            result['sizes'][size] = {
                'images': len(paths),
                'megabytes': statistics.fmean(path.stat().st_size for path in paths) / 1e6,
                'engines': {engine: _summary(engine, seconds, labels, len(paths), args) for engine in args.engine},
            }
            for engine, rows in result['sizes'][size]['engines'].items():
                for way, row in rows.items():
                    print(f'{size:14} {engine:16} {way:20} {row["images_per_second_per_core"]:7.1f} images/s a core, '
                          f'{row["ratio"]:.3f} of the plain time, {row["same_labels"]:.1%} of its labels')
            if args.output:
                args.output.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    return 0


def _summary(
        engine: str,
        seconds: dict[tuple[str, str], list[float]],
        labels: dict[tuple[str, str], list[str]],
        images: int,
        args: argparse.Namespace,
) -> dict[str, Any]:
    plain = engine, _PLAIN
    return {
        way: {
            'seconds': seconds[engine, way],
            'images_per_second_per_core': images / statistics.median(seconds[engine, way]) / args.workers,
            'ratio': statistics.median(
                one / other for one, other in zip(seconds[engine, way], seconds[plain], strict=True)),
            'same_labels': statistics.fmean(
                one == other for one, other in zip(labels[engine, way], labels[plain], strict=True)),
        }
        for way in WAYS
    }


def _machine() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(': ')[2] for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == '__main__':
    sys.exit(main())
