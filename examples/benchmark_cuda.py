r"""Measure a DRNet on a CUDA card, beside the plain backbone: correctness, waits of the host, inference and training.

    python examples/benchmark_cuda.py --out docs/benchmarks
    python examples/benchmark_cuda.py --out docs/benchmarks --compile

The first is meant to take two minutes, the second, which compiles five graphs, about as long. Steps come in the order
of their worth; each is printed and added to OUT/cuda.jsonl when it is done, and one that fails keeps no other from
running. Images are noise; they are routed in the given shares, whatever a predictor would say. On a processor,

    python examples/benchmark_cuda.py --device cpu --backbone test_resnet --resolutions 64 48 32 --predictor-size 32 \
        --batch-size 12 --repeats 2

tries the script itself.
"""

import argparse
import copy
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from on_cuda import host_waits, make_update
from timm.task import ClassificationTask

import timm_drnet
from timm_drnet.cascade.climb import confidence
from timm_drnet.core.routing import route
from timm_drnet.evaluate.bench import mixed_batches

CL = torch.channels_last
STEPS = ('correctness', 'waits', 'inference', 'float16', 'bfloat16', 'shares', 'course')


class Benchmark:
    """The steps, on one device.

    Args:
        args: Of the command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.on_card = self.device.type == 'cuda'
        self.backbone, self.predictor_size = args.backbone, args.predictor_size
        self.resolutions, self.mix = tuple(args.resolutions), tuple(args.mix)
        self.batch_size, self.repeats = args.batch_size, args.repeats
        self.file = args.out / 'cuda.jsonl'

    # How it is measured.

    def run(self, name: str, step: Callable[..., Any], *args: Any) -> None:
        """Run one step, and tell at once what came of it."""
        began, row = time.perf_counter(), {'step': name}
        try:
            row['result'] = step(*args)
        except Exception as error:
            row['error'] = f'{type(error).__name__}: {error}'[:1000]
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, True
        if self.on_card:
            torch.cuda.empty_cache()
        row['seconds'] = round(time.perf_counter() - began, 1)
        line = json.dumps(row)
        print(line, flush=True)
        with self.file.open('a', encoding='utf-8') as file:
            file.write(line + '\n')

    def milliseconds(self, call: Callable[[], object]) -> float:
        """What one call takes on the device."""
        if not self.on_card:
            began = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - began)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def compare(self, ways: dict[str, Callable[[], object]], warm: int = 3) -> dict[str, dict[str, float]]:
        """Medians, and the fastest and the slowest, of calls that take turns; the first way is what others are held to.

        Args:
            ways: What to call.
            warm: Calls of each before those that count.

        Returns:
            Milliseconds of each way, and its throughput over that of the first.
        """
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(-warm, self.repeats):
            for name, call in ways.items():
                milliseconds = self.milliseconds(call)
                if repeat >= 0:
                    taken[name].append(milliseconds)
        medians = {name: statistics.median(each) for name, each in taken.items()}
        first = next(iter(medians.values()))
        return {
            name: {
                'ms': round(medians[name], 3), 'min': round(min(each), 3), 'max': round(max(each), 3),
                'throughput': round(first / medians[name], 3)}
            for name, each in taken.items()}

    def waits(self, call: Callable[[], object]) -> list[str]:
        """Where the host waits for the card within a call: places in the code."""
        call()  # the first loads kernels
        return host_waits(call) if self.on_card else []

    # What it is measured with.

    def plain(self) -> torch.nn.Module:
        """The backbone as it is without this package."""
        return timm.create_model(self.backbone).to(self.device, memory_format=CL)

    def drnet(self, backbone: str | None = None, **kwargs: Any) -> timm_drnet.DRNet:
        """A DRNet of random weights, whose predictor is as likely to draw each resolution as the shares say."""
        torch.manual_seed(0)
        model = timm_drnet.create_drnet(
            backbone or self.backbone, resolutions=self.resolutions, predictor_size=self.predictor_size, **kwargs)
        if model.predictor is not None:
            classifier = model.predictor.get_classifier()
            with torch.no_grad():
                classifier.weight.zero_()
                classifier.bias.copy_(torch.tensor(self.mix).log())
        return model.to(self.device, memory_format=CL)

    def cascade(self, x: torch.Tensor) -> timm_drnet.DRNet:
        """A cascade that stops given images in the given shares."""
        model = self.drnet(router='cascade').eval().to(x.dtype)
        classifier = model.get_classifier()
        classifier.weight.data.mul_(3 / model.forward_at(x[:32], 0).std())  # random weights would be as unsure of all
        left, thresholds = x, [0.0] * (len(self.resolutions) - 1)
        for j in range(len(self.resolutions) - 1, 0, -1):
            sure = confidence(model.forward_at(left, j))
            ordered, stop = sure.sort(descending=True).values, round(self.mix[j] * len(x))
            thresholds[j - 1] = float((ordered[stop - 1] + ordered[stop]) / 2)
            left = left[sure < thresholds[j - 1]]
        model.args = replace(model.args, thresholds=tuple(thresholds))
        return model

    def images(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of noise and its choices."""
        size = self.resolutions[0]
        x = torch.randn(self.batch_size, 3, size, size, device=self.device).to(dtype, memory_format=CL)
        [batch] = mixed_batches(x, self.mix)
        return x, batch.choice

    def parts(self, x: torch.Tensor, choice: torch.Tensor) -> list[torch.Tensor]:
        """The images of each resolution."""
        return [x[choice == j].contiguous(memory_format=CL) for j in range(len(self.resolutions))]

    @functools.cached_property
    def alpha(self) -> float:
        """Half of what the largest resolution costs, in GFLOPs."""
        return timm_drnet.cost_table(self.drnet())[0].backbone_flops / 2e9

    def trainer(self, name: str, dtype: torch.dtype, size: int) -> Callable[[], torch.Tensor]:
        """A function that makes one update through timm's task, as train.py does: with a GradScaler in float16."""
        model = self.plain() if name == 'plain' else self.drnet(**{
            'joint': {'alpha': self.alpha}, 'joint, all': {'alpha': self.alpha, 'joint_resolutions': 'all'},
            'pretrain': {'stage': 'pretrain'}}[name])
        task = ClassificationTask(model.train(), torch.nn.CrossEntropyLoss(), device=self.device, verbose=False)
        side = self.resolutions[0]
        x = torch.randn(size, 3, side, side, device=self.device).contiguous(memory_format=CL)
        target = torch.randint(1000, (size,), device=self.device) % model.num_classes
        return make_update(task, x, target, dtype)[0]

    # The steps.

    def about(self) -> dict[str, Any]:
        """The machine and the setting."""
        return {
            'device': torch.cuda.get_device_name() if self.on_card else 'cpu', 'torch': torch.__version__,
            'cudnn': torch.backends.cudnn.version(), 'timm': timm.__version__, 'timm_drnet': timm_drnet.__version__,
            'backbone': self.backbone, 'resolutions': self.resolutions, 'mix': self.mix, 'batch_size': self.batch_size,
            'repeats': self.repeats}

    @torch.no_grad()
    def correctness(self, tf32: bool) -> dict[str, Any]:
        """Largest error of logits, over the largest logit, against float32 on the processor; and choices."""
        torch.backends.cudnn.allow_tf32 = tf32
        x, choice = torch.rand(12, 3, self.resolutions[0], self.resolutions[0]), torch.arange(12) % 3
        found = {}
        for backbone in dict.fromkeys((self.backbone, 'mobilenetv2_100')):
            model = self.drnet(backbone).eval().cpu()
            for norm in model.modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm.weight.uniform_(0.5, 1.5)
                    norm.running_var.uniform_(0.5, 2)
            predictor = model.predictor.get_classifier()
            predictor.weight.normal_()
            predictor.bias -= model.predictor_scores(x).mean(dim=0)
            expected, chosen = model.forward_at(x, choice), model.predict_resolution(x)
            there = copy.deepcopy(model).to(self.device)
            for name, one in (('eager', lambda there=there: there), ('deployed', there.deploy)):
                try:
                    made = one()
                    error = (made.forward_at(x.to(self.device), choice).cpu() - expected).abs().max()
                    same = made.predict_resolution(x.to(self.device)).cpu() == chosen
                    found[f'{backbone} {name}'] = {
                        'error': float(error / expected.abs().max()), 'equal choices': float(same.float().mean())}
                except RuntimeError as error:
                    found[f'{backbone} {name}'] = {'failed': str(error)[:300]}
        return {**found, 'shares': torch.bincount(chosen, minlength=3).tolist()}

    def host_waits(self) -> dict[str, list[str]]:
        """Where the host waits: once for a batch, once for a rung; of training, once more for the scaler."""
        x = self.images(torch.bfloat16)[0][:24]
        found = {}
        with torch.inference_mode():
            model, cascade = self.drnet().eval().to(torch.bfloat16), self.cascade(x)
            for name, one in (('predictor', model), ('deployed', model.deploy(0)), ('cascade', cascade)):
                found[name] = self.waits(lambda one=one: one(x))
        for name, dtype in (
                ('joint', torch.float16), ('joint', torch.bfloat16), ('joint, all', torch.bfloat16),
                ('pretrain', torch.bfloat16)):
            found[f'{name}, {dtype}'] = self.waits(self.trainer(name, dtype, 24))
        return found

    @torch.inference_mode()
    def speed(self, dtype: torch.dtype) -> dict[str, Any]:
        """Inference of one batch, eager."""
        x, choice = self.images(dtype)
        plain, model = self.plain().eval().to(dtype), self.drnet().eval().to(dtype)
        deployed, cascade = model.deploy(), self.cascade(x)
        parts = self.parts(x, choice)

        def routed(one: Any) -> Callable[[], object]:
            return lambda: (one.predict_resolution(x), one.forward_at(x, choice))

        ways: dict[str, Callable[[], object]] = {
            'plain': lambda: plain(x), 'routed': routed(model), 'deployed': routed(deployed),
            'predictor': lambda: model.predict_resolution(x),
            'branches apart': lambda: [model.forward_at(part, j) for j, part in enumerate(parts)],
            'cascade': lambda: cascade(x)}
        for j, resolution in enumerate(self.resolutions):
            ways[f'held at {resolution}'] = lambda j=j: model.forward_at(x, j)
        ways['deployed, held'] = lambda: deployed.forward_at(x, 0)
        conv = next(p for p in deployed.branches[0].parameters() if p.ndim == 4 and p.shape[2] > 1 and p.shape[1] > 3)
        return {
            **self.compare(ways), 'deployed is channels_last': conv.is_contiguous(memory_format=CL),
            'images that ran in the cascade': cascade.last_counts}

    def train_speed(self, dtype: torch.dtype, benchmark: bool, limit: float = 8.0) -> dict[str, Any]:
        """Updates of both stages beside those of the plain backbone, for at most so many seconds each."""
        torch.backends.cudnn.benchmark = benchmark
        found: dict[str, Any] = {}
        for name in ('plain', 'pretrain', 'joint'):
            if self.on_card:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            update, taken, losses = self.trainer(name, dtype, self.batch_size), [], []
            began = time.perf_counter()
            while len(taken) < self.repeats and (len(taken) < 3 or time.perf_counter() - began < limit):
                taken.append(self.milliseconds(lambda update=update, losses=losses: losses.append(update())))
            counted = taken[3:] or taken[-1:]
            found[name] = {
                'ms': round(statistics.median(counted), 2), 'max': round(max(counted), 2), 'first': round(taken[0], 1),
                'updates': len(counted), 'losses': [round(float(loss), 3) for loss in (losses[0], losses[-1])],
                'GiB': round(torch.cuda.max_memory_allocated() / 2 ** 30, 1) if self.on_card else None}
            del update
        found['joint over pretrain'] = round(found['joint']['ms'] / found['pretrain']['ms'], 3)
        return found

    def joint_course(self, dtype: torch.dtype, parts: int = 13) -> dict[str, Any]:
        """Updates of a joint stage from its start: each new number of images at a resolution has to be planned."""
        torch.backends.cudnn.benchmark = False
        update = self.trainer('joint', dtype, self.batch_size)
        taken = [[self.milliseconds(update) for _ in range(self.repeats)] for _ in range(parts)]
        return {
            'updates of each': self.repeats, 'ms': [round(statistics.median(part), 1) for part in taken],
            'min': round(min(map(min, taken)), 1)}

    @torch.inference_mode()
    def shares_that_vary(self, dtype: torch.dtype, batches: int = 4) -> dict[str, Any]:
        """Batches whose numbers of images at a resolution are new each time, and padded to multiples of 32."""
        x, _ = self.images(dtype)
        model = self.drnet().eval().to(dtype)
        generator = torch.Generator().manual_seed(1)
        choices = [
            torch.multinomial(torch.tensor(self.mix), len(x), True, generator=generator).to(self.device)
            for _ in range(batches)]

        def padded(j: int, part: torch.Tensor) -> torch.Tensor:
            more = torch.arange(-(-len(part) // 32) * 32, device=self.device) % len(part)
            return model.forward_at(part[more], j)[:len(part)]

        ways: dict[str, Callable[[torch.Tensor], object]] = {
            'as they are': lambda choice: model.forward_at(x, choice),
            'padded': lambda choice: route(x, choice, len(self.resolutions), padded)}
        found = {}
        for benchmark in (False, True):
            torch.backends.cudnn.benchmark = benchmark
            for name, way in ways.items():
                first = [self.milliseconds(functools.partial(way, choice)) for choice in choices]
                again = [self.milliseconds(functools.partial(way, choice)) for choice in choices * 3]
                found[f'{name}{", cudnn.benchmark" if benchmark else ""}'] = {
                    'first ms': [round(t, 1) for t in first], 'ms': round(statistics.median(again), 2)}
        return found

    def compiled(self) -> None:
        """The same batch compiled: graph by graph, then routed beside plain, eager and compiled."""
        dtype = torch.bfloat16
        with torch.inference_mode():  # or graphs for parts of a batch would not do for the parts that routing makes
            x, choice = self.images(dtype)
            parts = self.parts(x, choice)
        plain, model = self.plain().eval().to(dtype), self.drnet().eval().to(dtype)
        eager_plain, eager = copy.deepcopy(plain), copy.deepcopy(model)
        how = {'dynamic': False} if self.on_card else {'dynamic': False, 'backend': 'eager'}
        plain.compile(**how)
        model.compile(**how)
        calls: dict[str, Callable[[], object]] = {'plain': lambda: plain(x)}
        for j, part in enumerate(parts):
            calls[f'{len(part)} images at {self.resolutions[j]}'] = lambda j=j, part=part: model.forward_at(part, j)
        calls['predictor'] = lambda: model.predict_resolution(x)

        @torch.inference_mode()
        def one(call: Callable[[], object]) -> dict[str, Any]:
            return {'first ms': round(self.milliseconds(call)), **self.compare({'again': call})['again']}

        @torch.inference_mode()
        def together() -> dict[str, Any]:
            return self.compare({
                'plain': lambda: plain(x),
                'routed': lambda: (model.predict_resolution(x), model.forward_at(x, choice)),
                'plain, eager': lambda: eager_plain(x),
                'routed, eager': lambda: (eager.predict_resolution(x), eager.forward_at(x, choice))})

        for name, call in calls.items():
            self.run(f'compiled: {name}', one, call)
        self.run('compiled: routed beside plain', together)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    add = parser.add_argument
    add('--backbone', default='resnet50', help='(%(default)s)')
    add('--resolutions', type=int, nargs=3, default=[224, 168, 112], help='(224 168 112)')
    add('--predictor-size', type=int, default=0, help="side of the predictor's image (its own)")
    add('--mix', type=float, nargs=3, default=[0.25, 0.35, 0.40], help='share of each resolution (0.25 0.35 0.40)')
    add('--batch-size', type=int, default=256, help='(%(default)s)')
    add('--repeats', type=int, default=15, help='(%(default)s)')
    add('--device', default='cuda', help='(%(default)s)')
    add('--compile', action='store_true', help='the steps that compile, and no others')
    add('--steps', nargs='+', choices=STEPS, default=STEPS, metavar='STEP', help=f'of {", ".join(STEPS)} (all)')
    add('--out', type=Path, default=Path(), help='folder for the results (the current one)')
    args = parser.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available():
        print(f'{parser.prog}: there is no CUDA card here; timm-drnet bench measures on the CPU', file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Benchmark(args)
    bench.run('about', bench.about)
    if args.compile:
        bench.compiled()
        return 0
    for step, name, *call in (
            ('correctness', 'correctness, TF32 off', bench.correctness, False),
            ('correctness', 'correctness, TF32 on', bench.correctness, True),
            ('waits', 'waits of the host', bench.host_waits),
            ('inference', 'inference, bfloat16', bench.speed, torch.bfloat16),
            ('float16', 'training, float16 with a scaler', bench.train_speed, torch.float16, False),
            ('bfloat16', 'training, bfloat16, cudnn.benchmark', bench.train_speed, torch.bfloat16, True),
            ('shares', 'inference, shares that vary', bench.shares_that_vary, torch.bfloat16),
            ('course', 'joint training, bfloat16, part by part', bench.joint_course, torch.bfloat16)):
        if step in args.steps:
            bench.run(name, *call)
    return 0


if __name__ == '__main__':
    sys.exit(main())
