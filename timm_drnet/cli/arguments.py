"""Arguments: what their values may be, and those that several commands have. PyTorch is not needed to read them."""

import argparse
import ast
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias

from .output import printable

Subparsers: TypeAlias = 'argparse._SubParsersAction[Parser]'

DEFAULT_MODEL = 'drnet_efficientnet_lite0.in1k'
"""That of the package, whose import takes seconds."""

REDUCING_GAP = 2.5
"""As `timm_drnet.data.pixels` has it, whose import takes longer than is needed for a list of arguments."""

_NOT_MODEL_KWARGS = ('name', 'num_classes', 'checkpoint', 'pretrained', 'option')  # `load_model` has its own


class Parser(argparse.ArgumentParser):
    """A parser that tells errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Tell an error and leave."""
        self.exit(2, f'{printable(f"{self.prog}: {message}; see {self.prog} --help")}\n')


def at_least(least: int) -> Callable[[str], int]:
    """The type of whole numbers from some number on.

    Args:
        least: The smallest.

    Returns:
        A type for argparse.
    """
    def whole_number(text: str) -> int:
        return int(_check(text, int, lambda number: number >= least, f'a whole number of at least {least}'))

    return whole_number


positive_int = at_least(1)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    return _check(text, float, lambda number: 0 < number < math.inf, 'a number above 0')


def non_negative_float(text: str) -> float:
    """A finite number from 0 on."""
    return _check(text, float, lambda number: 0 <= number < math.inf, 'a number of at least 0')


def fraction(text: str) -> float:
    """A part of a whole."""
    return _check(text, float, lambda number: 0 < number <= 1, 'a fraction, above 0 and up to 1')


def reducing_gap(text: str) -> float | None:
    """How many times the size needed a JPEG file is decoded at least, or None for all of it."""
    if text == 'none':
        return None
    return _check(text, float, lambda number: 1 <= number < math.inf, 'a number of at least 1, or none')


def seed(text: str) -> int:
    """What PyTorch's generators take as a seed."""
    return int(_check(text, int, lambda number: 0 <= number < 2 ** 64, 'a whole number from 0 to 2**64 - 1'))


def port(text: str) -> int:
    """A port that a server can have."""
    return int(_check(text, int, lambda number: 1 <= number < 2 ** 16, 'a whole number from 1 to 65535'))


def threads(text: str) -> int:
    """A number of threads that can run at once: PyTorch does not survive one that the system refuses."""
    most = os.cpu_count() or 1
    return int(_check(
        text, int, lambda number: 1 <= number <= most,
        f'a whole number from 1 to {most}, the processors of this machine'))


def _check(text: str, kind: Callable[[str], float], valid: Callable[[float], bool], remedy: str) -> float:
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if not valid(number):
        raise argparse.ArgumentTypeError(f'{text}: use {remedy}')
    return number


class _ModelKwargs(argparse.Action):
    """KEY=VALUE arguments, as timm's ParseKwargs reads them, and a usage error for what is none."""

    def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: str | Sequence[Any] | None,
            option_string: str | None = None,
    ) -> None:
        found: dict[str, Any] = {}
        for argument in values or ():
            key, equals, value = argument.partition('=')
            if not equals:
                parser.error(f'{option_string} {argument}: use KEY=VALUE, behind all other arguments')
            if key in _NOT_MODEL_KWARGS:
                parser.error(f'{option_string} {argument}: not for here')
            try:
                found[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[key] = value
        setattr(namespace, self.dest, found)


def add_model_arguments(parser: argparse.ArgumentParser, positional: bool = True, least_classes: int = 1) -> None:
    """Add the arguments that name a model.

    Args:
        parser: The parser of a command.
        positional: Whether the model is a required positional argument, or an option with the shipped model as default.
        least_classes: The smallest number of classes; 0 for a command that takes models without a classifier.
    """
    text = 'a name from timm.list_models("*drnet*"), hf-hub:ORG/NAME or local-dir:PATH'
    if positional:
        parser.add_argument('model', metavar='MODEL', help=text)
    else:
        parser.add_argument('--model', metavar='MODEL', default=DEFAULT_MODEL, help=f'{text} (%(default)s)')
    add_model_kwargs(parser, least_classes)


def add_model_kwargs(parser: argparse.ArgumentParser, least_classes: int = 1) -> None:
    """Add the arguments of a model beside its name.

    Args:
        parser: The parser of a command.
        least_classes: The smallest number of classes; 0 for a command that takes models without a classifier.
    """
    parser.add_argument('--model-kwargs', metavar='KEY=VALUE', nargs='*', default={}, action=_ModelKwargs,
                        help='arguments of the model, such as resolutions=(224,168,112)')
    parser.add_argument('--num-classes', metavar='N', type=at_least(least_classes),
                        help="number of classes, if not the model's own")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the argument for what to run on.

    Args:
        parser: The parser of a command.
    """
    parser.add_argument(
        '--device', metavar='NAME', help='cpu, cuda, cuda:1, ... (the accelerator, if there is one)')


def add_reducing_gap(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the size at which JPEG files are decoded.

    Args:
        parser: The parser of a command.
    """
    parser.add_argument(
        '--reducing-gap', metavar='G', type=reducing_gap, default=REDUCING_GAP,
        help='decode a JPEG file at G times the size needed, or the next larger one; none: all of it (%(default)s)')


def add_loading(parser: argparse.ArgumentParser, least_batch: int = 1, read: str = 'images') -> None:
    """Add the arguments for reading images in batches.

    Args:
        parser: The parser of a command.
        least_batch: The smallest batch that the command can use.
        read: What the processes read.
    """
    parser.add_argument('-b', '--batch-size', metavar='N', type=at_least(least_batch), default=64,
                        help='images in a batch (%(default)s)')
    parser.add_argument('-j', '--workers', metavar='N', type=at_least(0), default=min(4, os.cpu_count() or 1),
                        help=f'processes that read {read} (%(default)s)')


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the commands that measure on labelled images, but for the data itself.

    Args:
        parser: The parser of a command.
    """
    add = parser.add_argument
    add('--checkpoint', metavar='FILE', help='checkpoint of train.py, or safetensors file, to measure')
    add('--dataset', metavar='NAME', default='', help='another kind of timm dataset, such as torch/cifar10')
    add('--split', metavar='NAME', default='validation', help='split of the dataset (%(default)s)')
    add('--class-map', metavar='FILE', default='', help='label of each class folder, as timm reads it: one name a line')
    add('--limit', metavar='N', type=positive_int, help='only the first N images')
    add('--crop-pct', metavar='P', type=fraction, help="central part of an image to use (the model's own)")
    add_loading(parser)
    add_device(parser)
    add('--amp', action='store_true', help='autocast to bfloat16')
    add('--seed', metavar='N', type=seed, default=42, help='of the bootstrap (%(default)s)')
