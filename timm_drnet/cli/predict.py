"""``timm-drnet predict``: what is in photographs, the resolution chosen for each, and what it cost."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from ..data.files import find_images
from ..data.pixels import printable
from ..evaluate.contact_sheet import contact_sheet
from ..evaluate.prediction import Predictions, format_flops, predict_images
from .common import Subparsers, UserError, add_model_arguments, load_model, pick_device, read_labels, tell

_SHEET_FORMATS = ('.png', '.jpg', '.jpeg')


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    text = 'classify photographs, and show the resolution chosen for each'
    parser = commands.add_parser(
        'predict', help=text, description=f'{text[0].upper()}{text[1:]}. The exit code is 1 if a file was unreadable.')
    parser.add_argument('inputs', metavar='IMAGE', nargs='+',
                        help='image files, folders (all images below) and quoted patterns such as "photos/**/*.jpg"')
    add_model_arguments(parser, positional=False)
    parser.add_argument('--checkpoint', metavar='FILE', help='trained weights, instead of the registered ones')
    parser.add_argument('--labels', metavar='FILE', help='names of the classes, one per line')
    parser.add_argument('--topk', metavar='K', type=int, default=1, help='labels per image (%(default)s)')
    parser.add_argument('--batch-size', metavar='N', type=int, default=32,
                        help='images that are routed together (%(default)s)')
    parser.add_argument('--device', metavar='DEVICE', help='such as cuda or cpu; an accelerator if there is one')
    parser.add_argument('--save', metavar='FILE', help='draw a contact sheet, grouped by resolution: a .png or .jpg')
    parser.add_argument('--json', action='store_true', help='print JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the predictions."""
    for option, value in (('--topk', args.topk), ('--batch-size', args.batch_size)):
        if value < 1:
            raise UserError(f'{option} {value}: use a number of at least 1')
    if args.num_classes is not None and args.num_classes < 1:
        raise UserError(f'--num-classes {args.num_classes}: use the number of classes of the weights')
    try:
        paths = find_images(args.inputs)
    except OSError as error:
        raise UserError(f'{error.filename}: {error.strerror}' if error.strerror else str(error)) from error
    if args.save:
        _check_save(args.save, paths)
    labels = read_labels(args.labels) if args.labels else None
    device = pick_device(args.device)
    model = load_model(args.model, args.num_classes, args.checkpoint, **args.model_kwargs).to(device)
    if labels is not None and len(labels) != model.num_classes:
        raise UserError(
            f'--labels {args.labels}: {len(labels)} lines for the {model.num_classes} classes of {args.model!r};'
            ' give one line for each class')
    try:
        predictions = predict_images(model, paths, labels, args.topk, args.batch_size, progress=True)
    except ValueError as error:
        raise UserError(f'--model {args.model}: {error}') from error

    if args.json:
        print(json.dumps(_as_json(args.model, predictions), indent=2, allow_nan=False))
    elif predictions.images:
        _print_table(predictions)
    for file in predictions.unreadable:
        tell('predict', f'skipped {file.path}: {file.reason}')
    if args.save and predictions.images:
        try:
            contact_sheet(predictions).save(args.save)
        except OSError as error:
            raise UserError(f'--save {args.save}: {error.strerror or error}; give another file') from error
    elif args.save:
        tell('predict', f'--save {args.save}: not drawn, no image could be read')
    return 1 if predictions.unreadable else 0


def _check_save(name: str, inputs: list[Path]) -> None:
    """Refuse a contact sheet that could not be written, before the work is done."""
    path = Path(name)
    if path.suffix.lower() not in _SHEET_FORMATS:
        raise UserError(f'--save {name}: cannot write this format; use a name that ends in .png or .jpg')
    if path.is_dir():
        raise UserError(f'--save {name}: this is a folder; give the name of a file')
    if not path.parent.is_dir():
        raise UserError(f'--save {name}: there is no folder {str(path.parent)!r}; create it first')
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f'--save {name}: no permission to write there; give another file')
    if path.resolve() in {image.resolve() for image in inputs}:
        raise UserError(f'--save {name}: this is one of the images to classify; give another file')


def _print_table(predictions: Predictions) -> None:
    n, spent, largest = len(predictions.images), predictions.flops, predictions.largest_flops
    names = [printable(str(image.path)) for image in predictions.images]
    labels = [[printable(label) for label in image.labels] for image in predictions.images]
    path_width = max(len('image'), *map(len, names))
    label_width = max(len('label'), *(len(label) for row in labels for label in row))
    most = max(predictions.costs.values())
    print(f'{"image":<{path_width}}  {"label":<{label_width}}  {"probability":>11}  {"resolution":>10}  {"cost":>12}')
    for image, name, row in zip(predictions.images, names, labels, strict=True):
        cost = f'  {image.resolution:>7} px  {format_flops(image.flops, like=most):>12}'
        for label, probability in zip(row, image.probabilities, strict=True):
            print(f'{name:<{path_width}}  {label:<{label_width}}  {probability:>11.1%}{cost}')
            name = cost = ''
    side = max(predictions.costs)
    shares = ', '.join(f'{count} at {resolution} px' for resolution, count in predictions.counts.items())
    print(f'\n{n} {"image" if n == 1 else "images"}: {shares}')
    print(f'{format_flops(spent)} in all: {spent / largest:.1%} of the {format_flops(largest)} that the plain backbone'
          f' takes when it always runs at {side} px')


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
