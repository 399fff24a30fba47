"""``timm-drnet bench``: measured speed, beside that of the model's own backbone."""

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..cascade.climb import rungs
from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..data.files import find_images
from ..data.output_folder import check_output_file, staged_file
from ..data.pixels import UnreadableImageError
from ..data.reading import image_loader
from ..deploy.export import ExportError
from ..deploy.onnx_engine import Exports
from ..evaluate.bench import Batch, Benchmark, bench, describe_machine, mixed_batches
from ..evaluate.engines import Engine, exports_for, prepare_engine
from ..evaluate.results import Results
from ..evaluate.speed_plot import plot_speed
from .common import first_line, load_model, pick_device
from .output import Column, UserError, show, table, tell

_PLOTS = ('.png', '.svg', '.pdf')
_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    device = pick_device(args.device)
    output, plot = _check(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    needs_weights = bool(args.data)
    model = load_model(
        args.model, args.num_classes, args.checkpoint, pretrained=needs_weights, **args.model_kwargs)
    mix = _mix(args.mix, model)
    model = model.to(device, _DTYPES[args.dtype])
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    accuracies = _accuracies(args, model) if args.plot else None
    measured = _measure(args, model, mix)
    report = {
        'model': args.model, 'data': args.data, 'mix': None if args.data else mix, 'dtype': args.dtype,
        'channels_last': args.channels_last, 'repeats': args.repeats,
        'machine': describe_machine(device, torch.get_num_threads()),
        'engines': {name: [dataclasses.asdict(one) for one in each] for name, each in measured.items()},
    }
    text = json.dumps(report, indent=2)
    if args.json:
        print(text)
    else:
        show(*_tables(args.model, report['machine'], measured))
    if output is not None:
        with staged_file(output) as file:
            file.write_text(text + '\n', encoding='utf-8')
    if plot is not None and accuracies is not None:
        with staged_file(plot) as file:
            plot_speed(measured, accuracies, file, f'{args.model}, {report["machine"]["processor"]}')
    return 0


def _measure(args: argparse.Namespace, model: DRNet, mix: tuple[float, ...]) -> dict[str, list[Benchmark]]:
    """For each engine a measurement for each batch size."""
    climbs = model.args.router == 'cascade' and model.num_classes > 0
    measured: dict[str, list[Benchmark]] = {name: [] for name in args.engine}
    with contextlib.ExitStack() as stack:
        exports: Exports | None = None
        for size in args.batch_size:
            images = _images(args, model, size)
            exports = exports or stack.enter_context(exports_for(model, images[0]))
            with torch.inference_mode():
                batches = mixed_batches(images[0], mix) if not args.data else [
                    Batch(x, model.predict_resolution(x), 1.0) for x in images]
            total = len(batches) * len(args.engine) * (args.repeats + 1)
            with tqdm(total=total, desc=f'batch {size}', leave=False, disable=None) as progress:
                engines = {
                    name: partial(_prepare, name, model, images[0], args.threads, exports, progress)
                    for name in args.engine}
                try:
                    found = bench(
                        engines, batches, cost_table(model), args.repeats, model.args.uses_predictor, progress.update,
                        model.args.thresholds if climbs else None)
                except (ExportError, ImportError, ValueError) as error:
                    raise UserError(f'--engine {" ".join(args.engine)}: {error}') from error
            for name, one in found.items():
                measured[name].append(one)
    return measured


def _check(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """Refuse what would only fail later, perhaps after a long measurement; the files of --output and --plot."""
    if args.data and args.mix:
        raise UserError(f'--mix {args.mix}: with --data the predictor decides; leave one of them out')
    if args.checkpoint and not args.data:
        raise UserError(f'--checkpoint {args.checkpoint}: without --data no weights are needed; leave it out')
    if bool(args.results) != bool(args.plot):
        raise UserError('--plot draws the accuracies of --results: give both of them, or none')
    if args.plot and Path(args.plot).suffix not in _PLOTS:
        raise UserError(f'--plot {args.plot}: use a name that ends in {", ".join(_PLOTS)}')
    if args.plot and importlib.util.find_spec('matplotlib') is None:
        raise UserError('--plot needs matplotlib: pip install "timm-drnet[plot]"')
    output = check_output_file(args.output, '--output') if args.output else None
    return output, check_output_file(args.plot, '--plot') if args.plot else None


def _accuracies(args: argparse.Namespace, model: DRNet) -> Results:
    try:
        return Results.from_report(json.loads(Path(args.results).read_text(encoding='utf-8')), model)
    except OSError as error:
        raise UserError(f'--results {args.results}: {error.strerror}') from error
    except ValueError as error:
        raise UserError(f'--results {args.results}: {error}; give that of timm-drnet validate {args.model}') from error


def _mix(text: str | None, model: DRNet) -> tuple[float, ...]:
    num_resolutions = len(model.resolutions)
    stops = rungs(model.args.thresholds) if model.args.router == 'cascade' else range(num_resolutions)
    if text is None:
        return tuple(1 / len(stops) if j in stops else 0.0 for j in range(num_resolutions))
    try:
        mix = tuple(float(part) for part in text.split(','))
    except ValueError:
        mix = ()
    valid = len(mix) == num_resolutions and all(share >= 0 for share in mix)
    if not valid or not math.isclose(sum(mix), 1, abs_tol=1e-3):
        raise UserError(f'--mix {text}: give {num_resolutions} shares that add up to 1, one for each resolution')
    for j, (share, resolution) in enumerate(zip(mix, model.resolutions, strict=True)):
        if share and j not in stops:
            raise UserError(f'--mix {text}: the cascade leaves {resolution} px out; give it 0')
    return tuple(share / sum(mix) for share in mix)


def _images(args: argparse.Namespace, model: DRNet, size: int) -> list[torch.Tensor]:
    """Batches of the size: noise, or photographs, of which those that do not fill a batch are left out."""
    weight = next(model.parameters())
    side = model.resolutions[0]
    if not args.data:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(size, model.in_chans, side, side, generator=generator)
        return [_like(weight, noise, args.channels_last)]
    try:
        load = image_loader(model)
        paths = find_images(args.data)
    except (OSError, ValueError) as error:
        raise UserError(f'--data {" ".join(args.data)}: {error}') from error
    images = []
    for path in tqdm(paths, desc='read', unit='image', delay=1, leave=False, disable=None):
        try:
            images.append(load(path))
        except UnreadableImageError as error:
            tell('bench', f'skipped {path}: {error}')
    if len(images) < size:
        raise UserError(f'--data {" ".join(args.data)}: {len(images)} images do not fill a batch of {size}; give more,'
                        ' or a smaller --batch-size')
    return [
        _like(weight, torch.stack(images[i:i + size]), args.channels_last)
        for i in range(0, len(images) - size + 1, size)]


def _prepare(
        name: str,
        model: DRNet,
        images: torch.Tensor,
        threads: int | None,
        exports: Exports,
        progress: Any,
) -> Engine:
    progress.set_postfix_str(f'prepare {name}')  # it may look for the best pieces for a minute
    try:
        engine = prepare_engine(name, model, images, threads, exports)
    except RuntimeError as error:  # of folding that would change the results; a compiler may have others
        raise UserError(f'--engine {name}: {first_line(error)}') from error
    progress.set_postfix_str('')
    return engine


def _like(weight: torch.Tensor, x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    x = x.to(weight.device, weight.dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _tables(model: str, machine: dict[str, Any], results: dict[str, list[Benchmark]]) -> list[str]:
    """A table for each engine and batch size, all with the same columns."""
    columns = [
        Column(''), Column('ms', '.2f'), Column('p50', '.2f'), Column('p90', '.2f'), Column('p99', '.2f'),
        Column('images/s', '.1f'), Column('MiB', '.0f'), Column('FLOPs', '.3f'), Column('time', '.3f')]
    headings, *rows = table(columns, [
        (row.name, row.milliseconds, row.p50, row.p90, row.p99, row.images_per_second,
         None if row.peak_memory is None else row.peak_memory / 2 ** 20, row.flops_ratio, row.time_ratio)
        for benchmarks in results.values() for one in benchmarks for row in one.timings])
    first = next(iter(results))
    lines = [
        f'{model} on {machine["processor"]}, {machine["device"]}, {machine["threads"]} threads,'
        f' torch {machine["torch"]}']
    for name, benchmarks in results.items():
        for one in benchmarks:
            shares = ', '.join(f'{100 * share:.0f} %' for share in one.shares)
            lines += [
                '',
                f'{name}, batches of {one.batch_size}, shares of the resolutions {shares};'
                f' routing alone takes {100 * one.routing:.1f} %'
                + ('' if name == first else f'; {one.speedup:.2f} times the throughput of {first}'),
                headings,
                *rows[:len(one.timings)]]
            rows = rows[len(one.timings):]
    return lines
