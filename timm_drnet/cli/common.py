"""What the commands share: naming a model, and refusing bad input."""

import argparse
import json
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # the client's transport
from safetensors import SafetensorError
from timm.models import load_checkpoint

from ..core.drnet import DRNet
from ..data.labels import read_names
from ..data.pixels import printable
from ..hub import zoo  # registers the models
from ..hub.checkpoints import checkpoint_filter_fn
from ..train.resume import CheckpointError, check_checkpoint
from ..train.training_run import TrainingRun, read_training_run

Subparsers: TypeAlias = 'argparse._SubParsersAction[argparse.ArgumentParser]'

_UNREADABLE = (RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError)

_PREPARATION = ('mean', 'std', 'interpolation', 'crop_pct')

_NOT_MODEL_KWARGS = ('name', 'num_classes', 'checkpoint', 'pretrained', 'option')  # `load_model` has its own


class UserError(Exception):
    """Bad input, to be told in one line that names the argument, the value and the remedy."""


def tell(command: str, message: str) -> None:
    """Say something beside the result of a command: one line on stderr, whatever names of files are in it.

    Args:
        command: Name of the command.
        message: What to say.
    """
    print(printable(f'timm-drnet {command}: {message}'), file=sys.stderr)


class _ModelKwargs(timm.utils.ParseKwargs):
    """timm's KEY=VALUE arguments, with a usage error for what is none, such as the positional argument behind them."""

    def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: str | Sequence[Any] | None,
            option_string: str | None = None,
    ) -> None:
        for value in values or ():
            if '=' not in value:
                parser.error(f'{option_string} {value}: use KEY=VALUE, behind all other arguments')
            if value.partition('=')[0] in _NOT_MODEL_KWARGS:
                parser.error(f'{option_string} {value}: not for here; --help shows the options')
        super().__call__(parser, namespace, values, option_string)  # type: ignore[no-untyped-call]


def add_model_arguments(parser: argparse.ArgumentParser, positional: bool) -> None:
    """Add the arguments that `load_model` reads.

    Args:
        parser: The parser of a command.
        positional: Whether the model is a required positional argument, or an option with the shipped model as default.
    """
    text = 'a name from timm.list_models("*drnet*"), hf-hub:ORG/NAME or local-dir:PATH'
    if positional:
        parser.add_argument('model', metavar='MODEL', help=text)
    else:
        parser.add_argument('--model', metavar='MODEL', default=zoo.DEFAULT_MODEL, help=f'{text} (%(default)s)')
    add_model_kwargs(parser)


def add_model_kwargs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `load_model` reads beside the name.

    Args:
        parser: The parser of a command.
    """
    parser.add_argument('--model-kwargs', metavar='KEY=VALUE', nargs='*', default={}, action=_ModelKwargs,
                        help='arguments of the model, such as resolutions=(224,168,112)')
    parser.add_argument('--num-classes', metavar='N', type=int, help="number of classes, if not the model's own")


def load_model(
        name: str,
        num_classes: int | None = None,
        checkpoint: str | None = None,
        pretrained: bool = True,
        option: str = '--checkpoint',
        **model_kwargs: Any,
) -> DRNet:
    """Create a DRNet for inference.

    Args:
        name: As timm.create_model takes it.
        num_classes: Number of classes, if not the model's own.
        checkpoint: A checkpoint of train.py or a safetensors file, instead of the registered weights; of a checkpoint
            that holds both, the averaged weights are taken. The arguments of the model that train.py recorded in it,
            such as its stage, are the defaults of the others, and images are prepared as it recorded.
        pretrained: Whether the model needs weights at all.
        option: What the command calls the argument for the checkpoint.
        **model_kwargs: Arguments of the model.

    Returns:
        The model in eval mode.

    Raises:
        UserError: If there is no such model, it has no weights, or the checkpoint does not fit it.
    """
    own_weights = pretrained and checkpoint is None
    recorded = TrainingRun() if checkpoint is None else _recorded_run(checkpoint)
    model_kwargs = {**(recorded.args.get('model_kwargs') or {}), **model_kwargs}
    try:
        model = timm.create_model(name, pretrained=own_weights, num_classes=num_classes, **model_kwargs)
    except (json.JSONDecodeError, KeyError) as error:  # timm reads it before it comes to this package
        raise UserError(
            f'cannot create model {name!r}: its config.json is not that of a timm model'
            f' ({_first_line(error)})') from error
    except (RuntimeError, ValueError, TypeError, OSError, HTTPError) as error:
        hint = f' Give trained weights with {option}.' if 'No pretrained weights' in str(error) else ''
        raise UserError(f'cannot create model {name!r}: {_first_line(error)}{hint}') from error
    if not isinstance(model, DRNet):
        raise UserError(f'model {name!r} is a {type(model).__name__}, not a DRNet; see timm.list_models("*drnet*")')
    if checkpoint is not None:
        try:
            check_checkpoint(checkpoint)
            load_checkpoint(model, checkpoint, filter_fn=checkpoint_filter_fn)
        except FileNotFoundError as error:
            raise UserError(f'{option} {checkpoint}: no such file') from error
        except CheckpointError as error:
            raise UserError(f'{option} {error}') from error
        except (KeyError, ValueError, *_UNREADABLE) as error:
            raise UserError(
                f'{option} {checkpoint}: not a checkpoint of {name!r} with {model.num_classes} classes'
                f' ({_first_line(error)})') from error
        config: Any = model.pretrained_cfg  # a dict, as timm leaves it
        config.update({key: recorded.data_config[key] for key in _PREPARATION if key in recorded.data_config})
    return model.eval()


def read_labels(name: str) -> list[str]:
    """Read the file given with --labels: one name per line, blank lines at its end aside.

    Raises:
        UserError: If it cannot be read.
    """
    try:
        return read_names(name)
    except ValueError as error:
        raise UserError(f'--labels {name}: {error}') from error
    except OSError as error:
        raise UserError(f'--labels {name}: {error.strerror}; give a text file with one label per line') from error


def check_new_folder(option: str, name: str) -> None:
    """Make sure that a folder can be made, or is empty.

    Raises:
        UserError: If not.
    """
    folder = Path(name)
    if not folder.resolve().parent.is_dir():
        raise UserError(f'{option} {folder}: there is no folder {str(folder.parent)!r}; create it first')
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f'{option} {folder}: exists and is not an empty folder; give another')


def pick_device(name: str | None) -> torch.device:
    """The named device, or the accelerator if there is one.

    Raises:
        UserError: If the device does not exist.
    """
    if name is None:
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {name}: {_first_line(error)}; use cpu') from error


def _recorded_run(checkpoint: str) -> TrainingRun:
    """What train.py recorded: weights alone tell neither the stage nor the resolutions, nor what images looked like."""
    try:
        return read_training_run(checkpoint)
    except (ValueError, OSError):
        return TrainingRun()  # a file that cannot be read is told when it is loaded


def _first_line(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):  # its first line is the number of the status
        return ' '.join(str(error).split())
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
