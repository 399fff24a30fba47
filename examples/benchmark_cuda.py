"""Measure a DRNet on a CUDA card: its speed beside that of its own backbone, three times, and its waits for the card.

    python examples/benchmark_cuda.py --output docs/benchmarks

It runs in bfloat16 and channels_last, by the engines eager, deployed and compile, on noise that is routed in given
shares. It writes one JSON file for each run, named after the card.
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

import timm
import torch
from torch.profiler import ProfilerActivity, profile

import timm_drnet  # registers the models
from timm_drnet.cli import main as timm_drnet_command
from timm_drnet.evaluate.bench import mixed_batches

_WAITS = ('cudaStreamSynchronize', 'cudaDeviceSynchronize', 'cudaEventSynchronize', 'cudaMemcpy')


def count_waits(model: timm_drnet.DRNet, x: torch.Tensor) -> Counter[str]:
    """Calls by which the host waits for the card, within one forward of a model.

    Args:
        model: In eval mode, on the card.
        x: Images, (B, C, S, S), on the card.

    Returns:
        How often each kind of call was made.
    """
    with torch.inference_mode():
        model(x)  # first uses load kernels
        torch.cuda.synchronize()
        activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        with profile(activities=activities) as profiler, torch.profiler.record_function('forward'):
            model(x)
    events = profiler.events()
    [forward] = [e for e in events if e.name == 'forward' and e.device_type == torch.autograd.DeviceType.CPU]
    return Counter(  # the profiler waits too, afterwards
        e.name for e in events if e.name in _WAITS and e.time_range.start <= forward.time_range.end)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('--model', default='drnet_resnet50', help='(%(default)s)')
    add('--mix', default='0.25,0.35,0.40', help='share of each resolution, largest first (%(default)s)')
    add('--batch-size', type=int, default=256, help='(%(default)s)')
    add('--runs', type=int, default=3, help='(%(default)s)')
    add('--output', type=Path, default=Path(), help='folder for the JSON files (the current one)')
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print(f'{parser.prog}: there is no CUDA card here; timm-drnet bench measures on the CPU', file=sys.stderr)
        return 2
    card = re.sub(r'\W+', '-', torch.cuda.get_device_name()).strip('-').lower()
    args.output.mkdir(parents=True, exist_ok=True)

    for i in range(1, args.runs + 1):
        code = timm_drnet_command([
            'bench', args.model, '--mix', args.mix, '-b', '1', '32', str(args.batch_size), '--device', 'cuda',
            '--engine', 'eager', 'deployed', 'compile', '--dtype', 'bfloat16', '--channels-last',
            '--output', str(args.output / f'{args.model}-{card}-{i}.json')])
        if code:
            return code

    model = timm.create_model(args.model).eval().to('cuda', torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(args.batch_size, 3, model.resolutions[0], model.resolutions[0])
    [batch] = mixed_batches(x, [float(share) for share in args.mix.split(',')])
    choice = batch.choice.cuda()
    # An untrained predictor would send all images one way.
    model._scores = lambda images: torch.nn.functional.one_hot(choice, len(model.resolutions)).float()
    waits = count_waits(model, x.to('cuda', torch.bfloat16, memory_format=torch.channels_last))
    (args.output / f'{args.model}-{card}-waits.json').write_text(json.dumps(waits, indent=2) + '\n', encoding='utf-8')
    print(f'waits for the card in a batch of {args.batch_size}: {sum(waits.values())} {dict(waits)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
