"""What the convolutions of deploy/onednn.py bring: deployed models with them, and with PyTorch's own, side by side.

A third side has oneDNN's convolutions, too, but puts their weights into the processor's order at every call.

Usage: python examples/compare_convolutions.py drnet_resnet50 --output convolutions-drnet_resnet50-1.json

All sides have their norms folded, channels_last, and batches cut as is fastest for each, measured before. Batches of
equal shares of the resolutions, with the predictor; of single images one of each.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from unittest import mock

import timm
import torch

import timm_drnet  # noqa: F401  # registers the models
from timm_drnet.deploy.deployed import DeployedDRNet
from timm_drnet.deploy.onednn import FusedConv, fuse_convs
from timm_drnet.evaluate.bench import describe_machine

_SIDES = ("PyTorch's own", 'oneDNN, packed at each call', 'oneDNN')
_SIZES = (1, 8, 32)


@torch.no_grad()
def prepare(name: str, side: str, dtype: torch.dtype) -> DeployedDRNet:
    """Deploy a model with random weights, with one side's convolutions."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    if side == _SIDES[2]:
        return model.deploy(dtype=dtype)
    if side == _SIDES[1]:
        with mock.patch(
                'timm_drnet.deploy.deployment.fuse_convs', lambda graph, x, packs: fuse_convs(graph, x, packs=False)):
            return model.deploy(dtype=dtype)
    with mock.patch('timm_drnet.deploy.deployment.fuse_convs'):
        deployed = model.deploy(micro_batch=0, dtype=dtype)
    assert not any(isinstance(module, FusedConv) for module in deployed.modules())
    deployed.to(memory_format=torch.channels_last)
    deployed.calibrate()
    return deployed


def compare(name: str, dtype: torch.dtype, seconds: float) -> dict[int, dict[str, float]]:
    """Milliseconds for an image, of each side in batches of each size: medians of rounds in which they take turns."""
    sides = {side: prepare(name, side, dtype) for side in _SIDES}
    images = torch.rand(max(_SIZES), 3, *[sides[_SIDES[0]].resolutions[0]] * 2)

    def run(deployed: DeployedDRNet, n: int) -> None:
        choice = torch.arange(max(n, 3)) % 3
        for i in range(0, len(choice), n):
            part = images[i:i + n]
            deployed.predict_resolution(part)
            deployed.forward_at(part, choice[i:i + n])

    taken: dict[tuple[int, str], list[float]] = {}
    began = time.perf_counter()
    rounds = 0
    while rounds < 4 or time.perf_counter() - began < seconds:
        for n in _SIZES:
            for side in _SIDES if rounds % 2 else _SIDES[::-1]:
                call = partial(run, sides[side], n)
                call()  # brings its weights into the caches
                start = time.perf_counter()
                call()
                taken.setdefault((n, side), []).append(1e3 * (time.perf_counter() - start) / max(n, 3))
        rounds += 1
    return {n: {side: statistics.median(taken[n, side]) for side in _SIDES} for n in _SIZES}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', metavar='MODEL')
    parser.add_argument('--dtype', nargs='+', default=['float32', 'bfloat16'])
    parser.add_argument('--seconds', type=float, default=15, help='least time of the rounds of each type')
    parser.add_argument('--output', type=Path, metavar='FILE')
    args = parser.parse_args()
    rows = []
    for dtype in args.dtype:
        for n, ms in compare(args.model, getattr(torch, dtype), args.seconds).items():
            rows.append({'model': args.model, 'dtype': dtype, 'batch_size': n, 'milliseconds': ms})
            print(f'{args.model} {dtype} {n:3d}', '  '.join(f'{side} {value:.2f} ms' for side, value in ms.items()),
                  *(f'{ms[side] / ms[_SIDES[2]]:.2f}' for side in _SIDES[:2]), flush=True)
    if args.output is not None:
        report = {'machine': describe_machine(torch.device('cpu'), torch.get_num_threads()), 'rows': rows}
        args.output.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
