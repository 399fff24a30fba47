"""``timm-drnet validate``: accuracy and cost on a folder of labelled images."""

import argparse
import dataclasses
import json
from typing import Any

import torch
from tqdm import tqdm

from ..data.datasets import open_labelled_images
from ..data.labelled import LabelledImages, make_loader
from ..data.output_folder import check_output_file, staged_file
from ..data.reading import data_config
from ..evaluate.validation import Accuracy, Score, Validation, validate
from .common import load_model, pick_device
from .labelled_data import describe_source, measured_how, tell_unreadable, verdict_lines
from .output import Column, UserError, show, table


def run(args: argparse.Namespace) -> int:
    """Measure, print, and tell what could not be read."""
    output = check_output_file(args.output, '--output') if args.output else None
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    try:
        images = open_labelled_images(
            args.data, model.num_classes, model.in_chans, args.dataset, args.split, args.class_map, args.limit)
        config = data_config(model, args.crop_pct)
        loader = make_loader(
            images, config, args.batch_size, args.workers, device, reducing_gap=args.reducing_gap)
        with tqdm(loader, desc='validate', unit='batch', leave=False, disable=None) as progress:
            result = validate(model, images.batches(progress), args.amp, args.channels_last, args.seed)
    except ValueError as error:
        raise UserError(str(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f'--batch-size {args.batch_size}: out of memory on {device}; use a smaller one') from error

    report = json.dumps(_report(args, config, images, result), indent=2)
    if args.json:
        print(report)
    else:
        show(*_table(args.model, describe_source(args, images), result))
    if output is not None:
        with staged_file(output) as file:
            file.write_text(report + '\n', encoding='utf-8')
    return tell_unreadable(args, images, 'measured')


def _report(
        args: argparse.Namespace,
        config: dict[str, Any],
        images: LabelledImages,
        result: Validation,
) -> dict[str, Any]:
    return {
        **measured_how(args, config),
        **dataclasses.asdict(result),
        'unreadable': [{'path': name, 'reason': reason} for name, reason in images.unreadable],
    }


def _table(model: str, source: str, result: Validation) -> list[str]:
    def row(name: str, score: Score | None, std: Accuracy | None = None) -> tuple[str | float | None, ...]:
        if score is None:
            return name, None, None, None, None
        accuracies: tuple[str | float, ...] = score.top1, score.top5
        if std is not None:
            accuracies = f'{score.top1:.2f} ± {std.top1:.2f} %', f'{score.top5:.2f} ± {std.top5:.2f} %'
        return name, *accuracies, score.gflops, 100 * score.fraction

    largest = result.resolutions[0].resolution
    width = len(str(largest))
    rows = [row('dynamic', result.dynamic)]
    if result.routed:  # otherwise these rows would repeat the one above
        rows += [
            row(f'  {one.resolution:>{width}} px, {100 * one.share:5.1f} % of images', one.routed)
            for one in result.resolutions]
    rows += [row(f'held at {one.resolution:>{width}} px', one.held) for one in result.resolutions]
    oracle, verdict, dynamic = result.oracle, result.verdict, result.dynamic
    if verdict is not None:
        rows += [
            ('static line at the same cost', verdict.static.top1, '', dynamic.gflops, 100 * dynamic.fraction),
            row('lots at the same shares', result.random.mean, result.random.std)]
    if result.routed:
        rows.append(('oracle', oracle.top1, '', oracle.gflops_with_router, 100 * oracle.fraction_with_router))
    lines = [f'{model} on {source}: {result.images:,} images, {result.num_classes:,} classes']
    if not result.routed:
        lines.append(f'pretrain stage: the resolution predictor is not in use, every image runs at {largest} px')
    columns = [
        Column(''), Column('top-1', '.2f', '%'), Column(f'top-{result.k}', '.2f', '%'), Column('GFLOPs', '.4f'),
        Column('of largest', '.1f', '%')]
    return lines + table(columns, rows) + verdict_lines(verdict)
