"""``timm-drnet calibrate``: make a plain pretrained backbone a DRNet in minutes."""

import argparse
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
from ..hub.publishing import disown_source
from ..train.norm_statistics import calibrate_norms
from ..train.predictor import train_predictor
from .common import check_model_folder, load_model, pick_device, save_model
from .output import UserError, show, tell


def run(args: argparse.Namespace) -> int:
    """Calibrate, train if asked to, save."""
    check_model_folder('--output', args.output)
    torch.manual_seed(args.seed)
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs).to(device)
    output = check_model_folder('--output', args.output, model)
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
        show(f'norms: statistics at {others} px estimated on {images:,} images')
    elif not args.train_predictor:
        raise UserError(f'--keep {" ".join(map(str, args.keep))}: this leaves nothing to do; leave a resolution out, or'
                        ' give --train-predictor')
    if batches is not None:
        _train(args, model, batches)
    disown_source(model)
    save_model(model.cpu(), output)
    show(f"timm.create_model({f'local-dir:{args.output}'!r}, pretrained=True)")
    skipped = {**{one.path: one.reason for one in unreadable}, **(batches.unreadable if batches else {})}
    for path, reason in skipped.items():
        tell('calibrate', f'skipped {path}: {reason}')
    return 1 if skipped else 0


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
        show(f'predictor: epoch {epoch} of {args.train_predictor}, loss {loss:.4f}, {told}')

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
