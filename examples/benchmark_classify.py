"""Measure ``timm-drnet classify`` against one process that uses the same cores.

    python examples/benchmark_classify.py photographs --output classify.json

The one process runs the loop of ``timm-drnet predict`` with the deployed model on all cores; the command runs one
worker for each core. They take turns. The command's throughput counts from the moment its first worker has something
to do: what comes before does not grow with the number of images, and is given apart. The other's starts when its model
is loaded, too.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import timm_drnet
from timm_drnet.cli.common import load_model
from timm_drnet.data.files import find_images
from timm_drnet.data.reading import Unreadable, image_loader, read_batches
from timm_drnet.deploy.deployed import DeployedDRNet


def one_process(
        model: timm_drnet.DRNet,
        deployed: DeployedDRNet,
        paths: Sequence[Path],
        batch_size: int,
) -> float:
    """Classify images as `predict_images` does, with the deployed model.

    Args:
        model: A DRNet in eval mode.
        deployed: The same, deployed.
        paths: Image files.
        batch_size: Images that are routed together.

    Returns:
        Seconds.
    """
    unreadable: list[Unreadable] = []
    start = time.perf_counter()
    for batch in read_batches(paths, image_loader(model), batch_size, unreadable):
        x = torch.stack([image for _, image in batch])
        choice = deployed.predict_resolution(x)
        deployed.forward_at(x, choice).softmax(dim=1).topk(1, dim=1).values.tolist()
    return time.perf_counter() - start


def command(args: argparse.Namespace, images: Path) -> tuple[float, float]:
    """Run ``timm-drnet classify``.

    Args:
        args: Of this program.
        images: A folder of image files.

    Returns:
        Seconds that the workers took, and those before that.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            'classify', args.model, '--input', str(images), '--output', f'{folder}/out', '--workers', str(args.cores),
            '--batch-size', str(args.batch_size), '--json']
        program = 'import sys; from timm_drnet.cli import main; sys.exit(main(sys.argv[1:]))'
        done = subprocess.run([sys.executable, '-c', program, *arguments], stdout=subprocess.PIPE, check=True)
        report: dict[str, Any] = json.loads(done.stdout)
    return report['working_seconds'], report['seconds'] - report['working_seconds']


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('images', metavar='FOLDER', help='photographs; all below it')
    add('--model', default=timm_drnet.DEFAULT_MODEL, help='(%(default)s)')
    add('--limit', metavar='N', type=int, default=2000, help='photographs, drawn at equal distances (%(default)s)')
    add('--batch-size', metavar='N', type=int, default=32, help='(%(default)s)')
    add('--cores', metavar='N', type=int, default=2, help='(%(default)s)')
    add('--runs', metavar='N', type=int, default=3, help='of each (%(default)s)')
    add('--output', metavar='FILE', type=Path, help='where to write the numbers, as JSON')
    args = parser.parse_args()
    paths = find_images([args.images])
    paths = paths[::max(1, len(paths) // args.limit)][:args.limit]
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:args.cores])  # the command inherits it
    torch.set_num_threads(args.cores)
    model = load_model(args.model)
    deployed = model.deploy()
    one_process(model, deployed, paths[:2 * args.batch_size], args.batch_size)  # warm-up; also of the disk's cache
    seconds: dict[str, list[float]] = {'one_process': [], 'classify': [], 'classify_start': []}
    with tempfile.TemporaryDirectory() as folder:
        for n, path in enumerate(paths):
            shutil.copyfile(path, Path(folder) / f'{n:06d}{path.suffix}')
        copies = find_images([folder])
        for _ in range(args.runs):
            seconds['one_process'].append(one_process(model, deployed, copies, args.batch_size))
            working, start = command(args, Path(folder))
            seconds['classify'].append(working)
            seconds['classify_start'].append(start)
            print(f'one process {seconds["one_process"][-1]:.1f} s, classify {working:.1f} s after {start:.1f} s')
    rates = {name: len(paths) / statistics.median(seconds[name]) for name in ('one_process', 'classify')}
    result = {
        'model': args.model,
        'images': len(paths),
        'batch_size': args.batch_size,
        'cores': args.cores,
        'machine': platform.machine(),
        'torch': torch.__version__,
        'seconds': seconds,
        'images_per_second': rates,
        'ratio': rates['classify'] / rates['one_process'],
    }
    print(f'medians: one process {rates["one_process"]:.1f}, classify {rates["classify"]:.1f} images per second;'
          f' ratio {result["ratio"]:.2f}')
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
