"""``timm-drnet calibrate``: make a plain pretrained backbone a DRNet in minutes."""

import argparse
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..core.drnet import DRNet
from ..data.datasets import open_labelled_images
from ..data.files import find_images
from ..data.labelled import LabelledImages, make_loader
from ..data.reading import Unreadable, data_config, image_loader, read_batches
from ..hub.publishing import disown_source, save_folder
from ..train.norm_statistics import calibrate_norms
from ..train.predictor import train_predictor
from .common import Subparsers, UserError, add_model_arguments, check_new_folder, load_model, pick_device, tell


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    parser = commands.add_parser(
        'calibrate', help='make a plain pretrained backbone usable at all resolutions',
        description="Estimate the statistics of each resolution's norms anew on some images, which need no labels, so"
                    ' that a plain pretrained backbone becomes usable at the lower resolutions; then, if asked to,'
                    ' train the predictor alone, with the backbone as it is. A target for it is given as --model-kwargs'
                    ' alpha=GFLOPS eta=WEIGHT. The exit code is 1 if an image was unreadable.')
    add_model_arguments(parser, positional=True)
    add = parser.add_argument
    add('data', metavar='DATA', help='a folder of images; a folder per class to train the predictor')
    add('--output', metavar='DIR', required=True, help='save the model there, for local-dir:DIR and timm-drnet publish')
    add('--checkpoint', metavar='FILE', help='weights of the plain backbone or of a DRNet, as train.py saves them')
    add('--keep', metavar='PX', type=int, nargs='+', default=[], help='resolutions whose statistics stay as they are')
    add('--limit', metavar='N', type=int, help='estimate on N images, drawn at random')
    add('--train-predictor', metavar='EPOCHS', type=int, default=0, help='then train the predictor (not at all)')
    add('--split', metavar='NAME', default='train', help='split of a folder per class to train it on (%(default)s)')
    add('--lr', metavar='R', type=float, default=1e-3, help='learning rate of that training (%(default)s)')
    add('-b', '--batch-size', metavar='N', type=int, default=64, help='images in a batch (%(default)s)')
    add('-j', '--workers', metavar='N', type=int, default=min(4, os.cpu_count() or 1),
        help='processes that read images for the training (%(default)s)')
    add('--device', metavar='NAME', help='cpu, cuda, cuda:1, ... (the accelerator, if there is one)')
    add('--seed', metavar='N', type=int, default=42, help='of what is drawn at random (%(default)s)')
    return parser


def run(args: argparse.Namespace) -> int:
    """Calibrate, train if asked to, save."""
    _check(args)
    torch.manual_seed(args.seed)
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs).to(device)
    for side in args.keep:
        if side not in model.resolutions:
            raise UserError(f'--keep {side}: the resolutions are {", ".join(map(str, model.resolutions))}')
    batches = _training_batches(args, model, device) if args.train_predictor else None  # before the long work
    unreadable: list[Unreadable] = []
    keep = [model.resolutions.index(side) for side in args.keep]
    others = ', '.join(str(r) for r in model.resolutions if r not in args.keep)
    if others:
        try:
            images = calibrate_norms(model, _images(args, model, unreadable), keep)
        except ValueError as error:
            raise UserError(f'{args.data}: {error}') from error
        print(f'norms: statistics at {others} px estimated on {images:,} images', flush=True)
    elif not args.train_predictor:
        raise UserError(f'--keep {" ".join(map(str, args.keep))}: this leaves nothing to do; leave a resolution out, or'
                        ' give --train-predictor')
    if batches is not None:
        _train(args, model, batches)
    disown_source(model)
    try:
        save_folder(model.cpu(), args.output)
    except ValueError as error:
        raise UserError(f'{args.output}: not written, {error}') from error
    print(f"timm.create_model({f'local-dir:{args.output}'!r}, pretrained=True)")
    skipped = {**{one.path: one.reason for one in unreadable}, **(batches.unreadable if batches else {})}
    for path, reason in skipped.items():
        tell('calibrate', f'skipped {path}: {reason}')
    return 1 if skipped else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would only fail later, perhaps after long work."""
    for option, value, least in (
            ('--batch-size', args.batch_size, 2), ('--workers', args.workers, 0), ('--limit', args.limit, 2),
            ('--train-predictor', args.train_predictor, 0)):
        if value is not None and value < least:
            raise UserError(f'{option} {value}: use at least {least}')
    if not (args.lr > 0 and math.isfinite(args.lr)):
        raise UserError(f'--lr {args.lr}: use a positive learning rate')
    check_new_folder('--output', args.output)


def _images(args: argparse.Namespace, model: DRNet, unreadable: list[Unreadable]) -> Iterator[torch.Tensor]:
    """Batches in an order drawn at random: of one class after the other, each batch would vary too little."""
    try:
        paths, load = find_images([args.data]), image_loader(model)
    except (OSError, ValueError) as error:
        raise UserError(f'{args.data}: {error}') from error
    random.Random(args.seed).shuffle(paths)
    with tqdm(paths[:args.limit], desc='norms', unit='image', leave=False, disable=None) as progress:
        for batch in read_batches(progress, load, args.batch_size, unreadable):
            yield torch.stack([image for _, image in batch])


def _training_batches(args: argparse.Namespace, model: DRNet, device: torch.device) -> '_Batches':
    """Batches with timm's augmentation for training, of images whose labels are the model's."""
    try:
        images = open_labelled_images(args.data, model.num_classes, model.in_chans, split=args.split)
    except ValueError as error:
        raise UserError(f'--train-predictor {args.train_predictor}: {error}') from error
    if len(images) < args.batch_size:
        raise UserError(
            f'--batch-size {args.batch_size}: there are {len(images)} images to train on; use a smaller one')
    loader = make_loader(images, data_config(model), args.batch_size, args.workers, device, is_training=True)
    return _Batches(images, loader)


def _train(args: argparse.Namespace, model: DRNet, batches: '_Batches') -> None:
    def progress(epoch: int, loss: float, shares: tuple[float, ...]) -> None:
        told = ', '.join(f'{r} px {s:.1%}' for r, s in zip(model.resolutions, shares, strict=True))
        print(f'predictor: epoch {epoch} of {args.train_predictor}, loss {loss:.4f}, {told}', flush=True)

    try:
        train_predictor(model, batches, args.train_predictor, args.lr, progress=progress)
    except ValueError as error:
        raise UserError(f'--train-predictor {args.train_predictor}: {error}') from error


class _Batches:
    """Images and labels of a loader, as often as they are gone through, with a bar that shows how far it is."""

    def __init__(self, images: LabelledImages, loader: Any) -> None:
        self.images = images
        self.loader = loader
        self.unreadable: dict[Path, str] = {}

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        with tqdm(self.loader, desc='predictor', unit='batch', leave=False, disable=None) as progress:
            yield from self.images.batches(progress)
        root = Path(self.images.dataset.reader.root)
        self.unreadable.update((root / name, reason) for name, reason in self.images.unreadable)
