"""What the commands share: naming a model, and refusing bad input."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # the client's transport

from ..data.labels import read_names
from ..data.pixels import printable
from ..hub import zoo  # registers the models
from ..hub.checkpoints import check_finite, count_classes, load_weights, read_weights
from ..hub.configuration import check_fields, check_name
from ..model import DRNet
from ..train.resume import CheckpointError, check_checkpoint
from ..train.training_run import TrainingRun, read_training_run

Subparsers: TypeAlias = 'argparse._SubParsersAction[argparse.ArgumentParser]'

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
        num_classes: Number of classes, if not the model's own. Weights have to be for that many; 0 leaves their
            classifier out.
        checkpoint: A checkpoint of train.py or a safetensors file, instead of the registered weights; of a checkpoint
            that holds both, the averaged weights are taken. The number of classes is theirs. The arguments of the model
            that train.py recorded in it, such as its stage, are the defaults of the others, and images are prepared as
            it recorded.
        pretrained: Whether the model needs weights at all.
        option: What the command calls the argument for the checkpoint.
        **model_kwargs: Arguments of the model.

    Returns:
        The model in eval mode.

    Raises:
        UserError: If there is no such model, it has no weights, or they do not fit it.
    """
    if num_classes is not None and num_classes < 0:
        raise UserError(f'--num-classes {num_classes}: use the number of classes of the weights')
    try:
        check_name(name)
        recorded, weights = (TrainingRun(), None) if checkpoint is None else _read_checkpoint(checkpoint, option)
        model_kwargs = {**recorded.model_args, **model_kwargs}
        create = partial(timm.create_model, name, pretrained=pretrained and checkpoint is None, **model_kwargs)
        model = create(num_classes=num_classes)
        classes = None if num_classes is not None or weights is None else count_classes(weights, model)
        if classes not in (None, getattr(model, 'num_classes', None)):
            model = create(num_classes=classes)
    except UserError:
        raise
    except Exception as error:  # timm's models check no argument, and these may come from a file or the command line
        reason = _first_line(error)
        if not isinstance(error, RuntimeError | ValueError | TypeError | OSError | HTTPError):
            reason = f'{type(error).__name__} ({reason}) where its arguments are used; check them'
        hint = f' Give trained weights with {option}.' if 'No pretrained weights' in str(error) else ''
        raise UserError(f'cannot create model {name!r}: {reason}{hint}') from error
    if not isinstance(model, DRNet):
        raise UserError(f'model {name!r} is a {type(model).__name__}, not a DRNet; see timm.list_models("*drnet*")')
    source = repr(name) if checkpoint is None else f'{option} {checkpoint}'
    config: Any = model.pretrained_cfg  # a dict, as timm leaves it
    if weights is not None:
        try:
            load_weights(model, weights)
            prepared = {key: recorded.data_config[key] for key in _PREPARATION if key in recorded.data_config}
            check_fields(prepared, 'The training that it records')
        except (ValueError, RuntimeError) as error:
            raise UserError(f'{source}: {_first_line(error)}') from error
        config.update(prepared)
    elif pretrained and model.num_classes not in (0, config['num_classes']):
        raise UserError(f'--num-classes {num_classes}: the weights of {name!r} are for {config["num_classes"]} classes;'
                        ' give others with --checkpoint')
    if pretrained:
        try:
            check_finite(model.state_dict())
        except ValueError as error:
            raise UserError(f'{source}: {error}') from error
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


def _read_checkpoint(checkpoint: str, option: str) -> tuple[TrainingRun, dict[str, torch.Tensor]]:
    """What train.py recorded, and the weights: these alone tell neither the stage nor what images looked like."""
    try:
        check_checkpoint(checkpoint)
        return read_training_run(checkpoint), read_weights(checkpoint)
    except FileNotFoundError as error:
        raise UserError(f'{option} {checkpoint}: no such file') from error
    except CheckpointError as error:
        raise UserError(f'{option} {error}') from error
    except ValueError as error:
        raise UserError(f'{option} {checkpoint}: {error}') from error
    except OSError as error:
        raise UserError(f'{option} {checkpoint}: {error.strerror or error}; give another file') from error


def _first_line(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError):  # its first line is the number of the status
        return ' '.join(str(error).split())
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
