"""Time each program of an exported folder alone, without routing and resizing: where the time of a batch goes.

    python examples/profile_programs.py FOLDER --runtime openvino --threads 2

Resizing, beside them, is what the runner does in NumPy from the largest resolution.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from timm_drnet.deploy.arrays import resize
from timm_drnet.deploy.manifest import read_file, read_manifest
from timm_drnet.deploy.runtimes import RUNTIMES, load, pick_runtime

_ROUNDS = 7


def milliseconds(run: Callable[[], object]) -> float:
    """The median time of a few calls, after one that warms up."""
    run()
    taken = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('folder', type=Path, help='as timm-drnet export writes it')
    add('--runtime', choices=RUNTIMES, help='(the one that is installed)')
    add('--threads', type=int, help="(the runtime's choice)")
    add('--batch-size', type=int, nargs='+', default=[1, 4, 8, 16, 32], help='(1 4 8 16 32)')
    args = parser.parse_args()
    manifest = read_manifest(args.folder, 'onnx')
    precision, files = manifest['precision'], manifest['files']
    runtime = pick_runtime(args.runtime, precision)
    print(f'milliseconds per image, {runtime}, {precision}\n')
    print('| program | ' + ' | '.join(f'batch {n}' for n in args.batch_size) + ' | resizing |')
    print('|---|' + '---|' * (len(args.batch_size) + 1))
    generator = np.random.default_rng(0)
    largest = generator.standard_normal((8, *manifest['preprocessing']['input_size'])).astype(np.float32)
    for entry in filter(None, (files['predictor'], *files['branches'])):
        program, side = load(read_file(args.folder, entry), runtime, precision, args.threads), entry['side']
        cells = []
        for n in args.batch_size:
            x = generator.standard_normal((n, manifest['in_chans'], side, side)).astype(np.float32)
            cells.append(f'{milliseconds(lambda p=program, x=x: p(x)) / n:.2f}')
        resizing = milliseconds(lambda side=side: resize(largest, side)) / len(largest)
        print(f'| {entry["name"]} | {" | ".join(cells)} | {resizing:.2f} |')


if __name__ == '__main__':
    main()
