"""What the commands share: models by their names, and where they are saved."""

from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # the client's transport
from safetensors import SafetensorError

from ..data import pixels
from ..data.labels import read_names
from ..data.output_folder import check_output_folder, staged
from ..hub import zoo  # noqa: F401  # registers the models
from ..hub.checkpoints import check_finite, count_classes, load_weights, read_weights
from ..hub.configuration import check_fields, check_name
from ..hub.publishing import disown_source, save_folder
from ..model import DRNet
from ..train.resume import CheckpointError, check_checkpoint
from ..train.training_run import TrainingRun, read_training_run
from .output import UserError

_FILES = ('.tar', '.pth', '.pt', '.ckpt', '.bin', '.safetensors')  # which no name of a model ends in
_PREPARATION = ('mean', 'std', 'interpolation', 'crop_pct')


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
    if is_file(name):
        try:
            named = read_training_run(name).model
        except (ValueError, OSError):
            named = None
        weights_too = f' {option} {name}' if pretrained else ''
        raise UserError(f'model {name!r}: this is a file of weights; give the name of its model, as in'
                        f' "{named or "MODEL"}{weights_too}"')
    try:
        check_name(name)
        recorded, weights = (TrainingRun(), None) if checkpoint is None else read_checkpoint(checkpoint, option)
        model_kwargs = {**recorded.model_args, **model_kwargs}
        create = partial(timm.create_model, name, pretrained=pretrained and checkpoint is None, **model_kwargs)
        model = create(num_classes=num_classes)
        classes = None if num_classes is not None or weights is None else count_classes(weights, model)
        if classes not in (None, getattr(model, 'num_classes', None)):
            model = create(num_classes=classes)
    except UserError:
        raise
    except Exception as error:  # timm's models check no argument, and these may come from a file or the command line
        reason = first_line(error)
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
            raise UserError(f'{source}: {first_line(error)}') from error
        config.update(prepared)
        if recorded.args:
            disown_source(model, recorded)
    elif pretrained and model.num_classes not in (0, config['num_classes']):
        raise UserError(f'--num-classes {num_classes}: the weights of {name!r} are for {config["num_classes"]} classes;'
                        ' give others with --checkpoint')
    if pretrained:
        try:
            check_finite(model.state_dict())
        except ValueError as error:
            raise UserError(f'{source}: {error}') from error
    return model.eval()


def is_file(name: str) -> bool:
    """Whether what was given as a model is a file of weights.

    Args:
        name: As the user gave it.

    Raises:
        UserError: If it is the path of something else, or of nothing.
    """
    path = Path(name)
    if path.is_file():
        return True
    if name.startswith(('hf-hub:', 'hf_hub:', 'local-dir:')) or timm.is_model(name.partition('.')[0]):
        return False
    if path.is_dir():
        raise UserError(f'{name}: this is a folder; the model saved in it is local-dir:{name}')
    if path.suffix in _FILES:
        raise UserError(f'{name}: no such file')
    return False


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


def check_labels(name: str, labels: list[str] | None, model: DRNet) -> None:
    """Refuse labels that are not one for each class.

    Raises:
        UserError: If there are more or fewer.
    """
    if labels is not None and len(labels) != model.num_classes:
        raise UserError(
            f'--labels {name}: {len(labels)} lines for the {model.num_classes} classes of the model; give one line for'
            ' each class')


def check_model_folder(option: str, name: str, model: DRNet | None = None) -> Path:
    """Make sure that `save_model` can write.

    Args:
        option: What the command calls the folder.
        name: The folder.
        model: The model, once it is there: with it, there must be room for its weights.

    Returns:
        The absolute path of the folder.

    Raises:
        OutputError: If not.
    """
    tensors = [] if model is None else [*model.parameters(), *model.buffers()]
    # Besides numbers, a file of safetensors holds a line about each tensor.
    size = sum(tensor.numel() * tensor.element_size() + 256 for tensor in tensors)
    return check_output_folder(name, option, size + 100_000 if tensors else 0)


def save_model(model: DRNet, folder: Path, *args: Any) -> None:
    """Write the folder of a model as a whole or not at all.

    Args:
        model: The model.
        folder: As `check_model_folder` returns it.
        *args: As `save_folder` takes them.

    Raises:
        OSError: If the folder cannot be written.
        UserError: If the model cannot be saved.
    """
    try:
        with staged(folder) as staging:
            save_folder(model, staging, *args)
    except SafetensorError as error:
        raise UserError(f'{folder}: cannot be written ({error}); name another folder') from error
    except ValueError as error:
        raise UserError(f'{folder}: not written, {error}') from error


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
        raise UserError(f'--device {name}: {first_line(error)}; use cpu') from error


def read_checkpoint(checkpoint: str, option: str) -> tuple[TrainingRun, dict[str, torch.Tensor]]:
    """Read a checkpoint of train.py or a file of weights.

    Args:
        checkpoint: The file.
        option: What the command calls it.

    Returns:
        What train.py recorded, and the weights: these alone tell neither the stage nor what images looked like.

    Raises:
        UserError: If it cannot be read.
    """
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


def first_line(error: BaseException) -> str:
    """What an error says, in one line, with the file that it is about."""
    if isinstance(error, HfHubHTTPError):  # its first line is the number of the status
        return ' '.join(str(error).split())
    where = f'{error.filename}: ' if isinstance(error, OSError) and error.filename is not None else ''
    return where + pixels.first_line(error)
