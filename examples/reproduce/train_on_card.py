"""Train the rows of the card's experiment: small images held on the device, a process for each chain of rows and seed.

    python train_on_card.py pack tiny-imagenet-100 tiny64 --per-class 480             # 38 MB instead of 75
    python train_on_card.py run tiny64 output --seconds 300
    python train_on_card.py summarize output results/card.json

Every finished row adds a line to `output/rows.jsonl` and its answers as `output/ROW-seedN.npz`. What is not finished
when the seconds are over is left out; the same command skips what is finished, and goes on after the last whole epoch.
The number of epochs is what the seconds allow, the same for all rows, or --epochs.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from card.images import Images, on_device, pack, read_folder, unpack
from card.rows import CHAINS, PREDICTORS, Chain
from card.stages import Setting
from card.summary import write_summary
from reproduction.measuring import machine

_PARTS = (0.9, 0.08, 0.02)
"""Of each class's training images: to train on, for predictors alone, to set thresholds on."""
_WORK = {'distilled': 1.3, 'static': 1.85, 'paper': 1.3, 'teacher': 1.0, 'topdown': 1.0}
"""Of each chain's most wanted rows, in trainings like its first row."""
_LR_BASE, _LR_BASE_BATCH = 0.1, 256
"""The rate for a batch of so many images, and in proportion for others; timm's own."""
_SAFE = 0.85
"""Of the seconds."""
_FALLBACK = 20
"""Epochs, if the speed could not be measured."""


def split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Indices of the training images by use; the same for all seeds."""
    draw = np.random.default_rng(0)
    parts: dict[str, list[np.ndarray]] = {'train': [], 'predictor': [], 'dial': []}
    for label in np.unique(labels):
        index = draw.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum([round(p * len(index)) for p in _PARTS])[:-1]
        for name, one in zip(parts, np.split(index, ends), strict=True):
            parts[name].append(one)
    return {name: np.concatenate(one) for name, one in parts.items()}


def load(folder: Path, device: torch.device) -> dict[str, Images]:
    """The arrays that `run` has left in a folder, on the device, by use."""
    pixels = {
        name: (np.load(folder / f'{name}.npy'), np.load(folder / f'{name}-labels.npy')) for name in ('train', 'val')}
    everything = on_device(*pixels['train'], device)
    parts = split(pixels['train'][1])
    images = {name: everything.part(torch.from_numpy(index).to(device)) for name, index in parts.items()}
    return {**images, 'val': on_device(*pixels['val'], device)}


def epochs_in(seconds: float, step_seconds: Mapping[str, float], steps: int) -> int:
    """Epochs that fit, a multiple of four, at least 12 and at most 40.

    Args:
        seconds: For training.
        step_seconds: Of each chain's first row, with all processes at work.
        steps: In an epoch.
    """
    per_epoch = steps * max(_WORK[chain] * one for chain, one in step_seconds.items())
    return int(min(40, max(12, _SAFE * seconds / per_epoch // 4 * 4)))


def work(chain: int, seed: int, args: argparse.Namespace, folder: Path, barrier: Any, speeds: Any, ends: float) -> None:
    """One process."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    device = torch.device(args.device)
    setting = Setting(
        epochs=args.epochs or 16, cooldown=(args.epochs or 16) // 4 or 1, batch=args.batch, width=args.width,
        lr=_LR_BASE * args.batch / _LR_BASE_BATCH, deadline=ends)
    one = Chain(CHAINS[chain], seed, load(folder, device), setting, args.output, args.rows)
    if not args.epochs:
        epochs = _FALLBACK
        try:
            one.benchmark(2)
            barrier.wait(60)
            speeds[len(CHAINS) * args.seeds.index(seed) + chain] = one.benchmark(5)
            barrier.wait(30)
            slowest = np.array(speeds).reshape(-1, len(CHAINS)).max(axis=0)
            epochs = epochs_in(
                ends - time.time(), dict(zip(CHAINS, slowest, strict=True)), len(one.images['train']) // args.batch)
            one.tell(f'{epochs} epochs; ms a step: {(1e3 * slowest).round(1).tolist()}')
        except threading.BrokenBarrierError:
            one.tell(f'a process is missing, so {epochs} epochs')
        one.setting = replace(setting, epochs=epochs, cooldown=epochs // 4)
    one.run()


def spread(data: Path, folder: Path, limit: int | None = None) -> None:
    """Read the images and leave them in a folder as arrays, which `load` reads."""
    packed = (data / 'index.json').exists()
    for name in ('train', 'val'):
        pixels, labels = unpack(data, name) if packed else read_folder(data, name)
        if limit:
            chosen = np.linspace(0, len(labels) - 1, limit).astype(int)
            pixels, labels = pixels[chosen], labels[chosen]
        np.save(folder / f'{name}.npy', pixels)
        np.save(folder / f'{name}-labels.npy', labels)


def predictors(args: argparse.Namespace) -> None:
    """Train predictors alone, one after another."""
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    with tempfile.TemporaryDirectory() as folder:
        spread(args.data, Path(folder))
        images = load(Path(folder), torch.device(args.device))
    for seed in args.seeds:
        chain = Chain('distilled', seed, images, Setting(args.epochs, 1, width=args.width), args.output)
        chain.predictors(args.kinds, args.part, args.epochs, args.tau)


def run(args: argparse.Namespace) -> int:
    """Start the processes, and end what is left of them when the time is over."""
    ends = time.time() + args.seconds
    args.output.mkdir(parents=True, exist_ok=True)
    context = torch.multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory() as folder:
        spread(args.data, Path(folder), args.limit)
        print(f'images read, {ends - time.time():.0f} s left', flush=True)
        jobs = [(chain, seed) for seed in args.seeds for chain in range(len(CHAINS)) if CHAINS[chain] in args.chains]
        barrier, speeds = context.Barrier(len(jobs)), context.Array('d', len(args.seeds) * len(CHAINS))
        processes = [
            context.Process(target=work, args=(*job, args, Path(folder), barrier, speeds, ends - 5)) for job in jobs]
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.1, ends + 5 - time.time()))
        for process in processes:
            process.kill()
            process.join()
    told = args.output / 'run.json'
    before = json.loads(told.read_text())['seconds'] if told.exists() else 0
    here = machine()
    told.write_text(json.dumps({
        'torch': torch.__version__,
        'device': here['gpu'] if args.device == 'cuda' else f'{here["cores"]} cores of {here["processor"]}',
        'width': args.width, 'batch': args.batch, 'seconds': round(before + args.seconds - (ends - time.time()), 1),
        'exit_codes': [p.exitcode for p in processes]}))
    return int(any(p.exitcode for p in processes))


def main(argv: Sequence[str] | None = None) -> int:
    """Pack or run."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser('pack', help='make a folder of images small enough to travel')
    packing.add_argument('data', type=Path, help='folder of train and val, each with a folder for every class')
    packing.add_argument('output', type=Path)
    packing.add_argument('--quality', type=int, default=52, help='of AVIF (%(default)s)')
    packing.add_argument('--per-class', type=int, help='training images of each class to take (all)')
    packing.set_defaults(call=lambda args: pack(args.data, args.output, args.quality, args.per_class))
    running = commands.add_parser('run', help='train')
    add = running.add_argument
    add('data', type=Path, help='such a folder, packed or not')
    add('output', type=Path)
    add('--seconds', type=float, default=300, help='from the start to the end (%(default)g)')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--chains', nargs='+', choices=CHAINS, default=CHAINS[:3], help='(%(default)s)')
    add('--rows', nargs='+', help='only these of the chains')
    add('--epochs', type=int, help='of a row (what the seconds allow)')
    add('--width', type=float, default=1.0, help='of the backbone (%(default)g)')
    add('--batch', type=int, default=512, help='(%(default)s)')
    add('--device', default='cuda', help='(%(default)s)')
    add('--limit', type=int, help='take only so many images, for a trial')
    running.set_defaults(call=run)
    again = commands.add_parser('predictors', help='train predictors alone again')
    add = again.add_argument
    add('data', type=Path, help='the images of the run')
    add('output', type=Path, help='the folder of the run')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--kinds', nargs='+', choices=PREDICTORS, default=['features', 'scratch'])
    add('--part', choices=('held', 'train'), default='held',
        help='train on images kept from the backbone, or on those that it was trained on (%(default)s)')
    add('--epochs', type=int, default=12, help='over these images (%(default)s)')
    add('--tau', type=float, nargs='+', default=[1.0], help='temperature of the targets (1), or the first and the last')
    add('--width', type=float, default=1.0, help='of the backbone (%(default)g)')
    add('--device', default='cpu', help='(%(default)s)')
    again.set_defaults(call=predictors)
    telling = commands.add_parser('summarize', help='compute what the page of results tells')
    telling.add_argument('output', type=Path, help='the folder of a run')
    telling.add_argument('summary', type=Path, help='JSON file to write')
    telling.set_defaults(call=lambda args: write_summary(args.output, args.summary))
    args = parser.parse_args(argv)
    return args.call(args) or 0


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    sys.exit(main())
