"""``timm-drnet analyze``: a page that holds a model's choices of resolutions against the best ones."""

import argparse
import json
import os
from collections.abc import Sequence

import torch
from tqdm import tqdm

from ..analysis.choices import Analysis, analyze, check_analyzable
from ..analysis.report import write_report
from ..core.drnet import DRNet
from ..data.datasets import open_labelled_images
from ..data.labelled import LabelledImages, make_loader
from ..data.labels import class_labels
from ..data.output_folder import check_output_folder
from ..data.reading import data_config
from ..evaluate.validation import Score
from .common import load_model, pick_device
from .labelled_data import describe_source, measured_how, tell_unreadable, verdict_lines
from .output import Column, UserError, show, table


def run(args: argparse.Namespace) -> int:
    """Analyze, write, print where, and tell what could not be read."""
    try:
        check_output_folder(args.out, 'OUT')
        device = pick_device(args.device)
        model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs)
        check_analyzable(model)
        model = model.to(device)
        images = open_labelled_images(
            args.data, model.num_classes, model.in_chans, args.dataset, args.split, args.class_map, args.limit)
        config = data_config(model, args.crop_pct)
        loader = make_loader(
            images, config, args.batch_size, args.workers, device, reducing_gap=args.reducing_gap)
        with tqdm(loader, desc='analyze', unit='batch', leave=False, disable=None) as progress:
            analysis = analyze(model, images.batches(progress), args.amp, args.seed)
        cascade = model.args.router == 'cascade'
        dial = {'thresholds': model.args.thresholds} if cascade else {'cost_weight': model.args.cost_weight}
        settings = {**measured_how(args, config), **dial}
        summary = write_report(
            analysis, images, args.out, args.model, describe_source(args, images), _class_names(model, images),
            settings)
    except ValueError as error:
        raise UserError(str(error)) from error
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f'--batch-size {args.batch_size}: out of memory on {device}; use a smaller one') from error
    if args.json:
        print(json.dumps(summary, indent=2))
    else:
        show(*_table(args, analysis))
    return tell_unreadable(args, images, 'analyzed')


def _class_names(model: DRNet, images: LabelledImages) -> Sequence[str]:
    """The model's names of the classes, or those of the dataset if the model just counts them."""
    labels = class_labels(model)
    if labels != tuple(map(str, range(model.num_classes))):
        return labels
    reader = getattr(images.dataset, 'reader', images.dataset)
    theirs = getattr(reader, 'class_to_idx', None) or {}
    names = {index: str(name) for name, index in theirs.items()}
    return [names.get(index, label) for index, label in enumerate(labels)]


def _table(args: argparse.Namespace, analysis: Analysis) -> list[str]:
    validation, choices = analysis.validation, analysis.choices
    oracle, verdict = validation.oracle, validation.verdict
    largest = validation.resolutions[0]

    def row(name: str, score: Score) -> tuple[str, float, float, float]:
        return name, score.top1, score.gflops, 100 * score.fraction

    rows: list[Sequence[str | float]] = [
        row('dynamic', validation.dynamic),
        row(f'held at {largest.resolution} px', largest.held),
        row('lots at the same shares', validation.random.mean),
        ('oracle, with the router', oracle.top1, oracle.gflops_with_router, 100 * oracle.fraction_with_router),
        ('oracle', oracle.top1, oracle.gflops, 100 * oracle.fraction),
    ]
    if verdict is not None:
        dynamic = validation.dynamic
        rows.insert(2, (
            'static line at the same cost', verdict.static.top1, dynamic.gflops, 100 * dynamic.fraction))
    remarks: list[Sequence[str | float]] = [
        ('too small', 100 * choices.outcomes.too_small / validation.images, ''),
        ('needlessly large', 100 * choices.outcomes.needlessly_large / validation.images, ''),
        ('right at no resolution', 100 * oracle.none_right / validation.images, ''),
        ('agreement with the oracle', 100 * choices.agreement, f'by chance {100 * choices.agreement_by_chance:.2f} %'),
        ('calibration error', 100 * analysis.calibration.ece, ''),
    ]
    columns = [
        Column(''), Column('top-1', '.2f', '%'), Column('GFLOPs', '.4f'), Column('of largest', '.1f', '%')]
    return [
        f'{args.model}: {validation.images:,} images, {validation.num_classes:,} classes',
        *table(columns, rows),
        *table([Column(''), Column('', '.2f', '%'), Column('')], remarks)[1:],
        *verdict_lines(verdict),
        f'look at it: {os.path.join(args.out, "index.html")}']
