"""``timm-drnet predict``: what is in photographs, the resolution chosen for each, and what it cost."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..data.files import find_images
from ..data.output_folder import check_output_file, staged_file
from ..evaluate.contact_sheet import contact_sheet
from ..evaluate.prediction import Predictions, format_flops, predict_images
from .common import check_labels, load_model, pick_device, read_labels
from .output import Column, UserError, show, table, tell

_SHEET_FORMATS = ('.png', '.jpg', '.jpeg')


def run(args: argparse.Namespace) -> int:
    """Print the predictions."""
    try:
        paths = find_images(args.inputs)
    except OSError as error:
        reason = f'{error.filename}: {error.strerror}' if error.strerror else str(error)
        raise UserError(reason) from error
    sheet = _check_save(args.save, paths) if args.save else None
    labels = read_labels(args.labels) if args.labels else None
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs).to(device)
    check_labels(args.labels, labels, model)
    try:
        predictions = predict_images(
            model, paths, labels, args.topk, args.batch_size, progress=True, reducing_gap=args.reducing_gap)
    except ValueError as error:
        raise UserError(f'--model {args.model}: {error}') from error

    if args.json:
        print(json.dumps(_as_json(args.model, predictions), indent=2, allow_nan=False))
    elif predictions.images:
        show(*_table(predictions))
    for unreadable in predictions.unreadable:
        tell('predict', f'skipped {unreadable.path}: {unreadable.reason}')
    if sheet is not None and predictions.images:
        with staged_file(sheet) as file:
            contact_sheet(predictions).save(file)
    elif sheet is not None:
        tell('predict', f'--save {args.save}: not drawn, no image could be read')
    return 1 if predictions.unreadable else 0


def _check_save(name: str, inputs: list[Path]) -> Path:
    """Refuse a contact sheet that could not be written, before the work is done."""
    if Path(name).suffix.lower() not in _SHEET_FORMATS:
        raise UserError(f'--save {name}: cannot write this format; use a name that ends in .png or .jpg')
    if Path(name).resolve() in {image.resolve() for image in inputs}:
        raise UserError(f'--save {name}: this is one of the images to classify; give another file')
    return check_output_file(name, '--save')


def _table(predictions: Predictions) -> list[str]:
    n, spent, largest = len(predictions.images), predictions.flops, predictions.largest_flops
    most, side = max(predictions.costs.values()), max(predictions.costs)
    rows: list[tuple[str | float, ...]] = []
    for image in predictions.images:
        first: tuple[str | float, ...] = str(image.path), image.resolution, format_flops(image.flops, like=most)
        for label, probability in zip(image.labels, image.probabilities, strict=True):
            path, resolution, cost = first
            rows.append((path, label, probability, resolution, cost))
            first = '', '', ''
    shares = ', '.join(f'{count} at {resolution} px' for resolution, count in predictions.counts.items())
    columns = [
        Column('image'), Column('label'), Column('probability', '.1%'), Column('resolution', '.0f', 'px'),
        Column('cost', '')]
    return [
        *table(columns, rows),
        '',
        f'{n} {"image" if n == 1 else "images"}: {shares}',
        f'{format_flops(spent)} in all: {spent / largest:.1%} of the {format_flops(largest)} that the plain backbone'
        f' takes when it always runs at {side} px']


def _as_json(model: str, predictions: Predictions) -> dict[str, Any]:
    n, spent, largest = len(predictions.images), predictions.flops, predictions.largest_flops
    return {
        'model': model,
        'images': [
            {
                'path': str(image.path),
                'labels': [
                    {'label': label, 'probability': probability}
                    for label, probability in zip(image.labels, image.probabilities, strict=True)
                ],
                'resolution': image.resolution,
                'gflops': image.flops / 1e9,
            }
            for image in predictions.images
        ],
        'unreadable': [{'path': str(file.path), 'reason': file.reason} for file in predictions.unreadable],
        'total': {
            'images': n,
            'gflops': spent / 1e9,
            'largest_gflops': largest / 1e9,
            'fraction': spent / largest if n else None,
            'shares': {str(resolution): count / n if n else 0.0 for resolution, count in predictions.counts.items()},
        },
    }
