"""What it brings in ``timm-drnet classify`` that images wait for others of their resolution, by how long they may wait.

    python examples/compare_gathering.py PHOTOGRAPHS --export FOLDER --engine openvino-int8

Images that a cascade sends on are run together with those of the same batch, of the same 8 batches, as `classify` does,
or of all. Milliseconds of one core for an image, without reading; FOLDER is of ``timm-drnet export``.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

import timm_drnet
from timm_drnet.bulk.grouping import classify_grouped
from timm_drnet.cli.common import load_model
from timm_drnet.data.reading import image_loader, read_some
from timm_drnet.deploy.engine_names import ONNX_ENGINES
from timm_drnet.deploy.onnx_engine import OnnxEngine


def main() -> int:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('photographs', metavar='FOLDER', type=Path, help='of them 256 are taken')
    add('--export', metavar='FOLDER', required=True, help='for the engine')
    add('--engine', choices=ONNX_ENGINES, default='openvino-int8', help='(%(default)s)')
    add('--model', default=timm_drnet.DEFAULT_MODEL, help='(%(default)s)')
    add('-b', '--batch-size', metavar='N', type=int, nargs='+', default=[8, 32], help='(8 32)')
    add('--repeats', metavar='N', type=int, default=3, help='(%(default)s)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(args.model).eval()
    engine = OnnxEngine(args.export, model, args.engine, threads=1)
    images = read_some([args.photographs], image_loader(model), 256, [])
    print('| batch | images wait for | ms per image |\n|---|---|---|')
    for size in args.batch_size:
        units = {'their batch': size, '8 batches': 8 * size, 'all': len(images)}
        seconds: dict[str, list[float]] = {name: [] for name in units}
        for n in range(1 + args.repeats):
            for name, unit in units.items():
                began = time.process_time()
                for part in images.split(unit):
                    classify_grouped(engine, part, size)
                if n:  # the first warms up
                    seconds[name].append((time.process_time() - began) / len(images))
        for name, found in seconds.items():
            print(f'| {size} | {name} | {1e3 * statistics.median(found):.2f} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
