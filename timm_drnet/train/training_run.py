"""Training runs: what a checkpoint of timm's train.py says about itself, read without running what it may hold."""

import argparse
import os
import pickle
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.utils import load_checkpoint_metadata

from ..data.class_folders import class_names, folder_of_split, read_class_map

_DATA_ARGS = ('img_size', 'input_size', 'mean', 'std', 'interpolation', 'crop_pct')
_MODEL_ARGS = {'in_chans': 'in_chans', 'gp': 'global_pool', 'bn_momentum': 'bn_momentum', 'bn_eps': 'bn_eps'}
"""Arguments of train.py, and what create_model calls them. It leaves drop rates out when it saves a model."""
_TYPES: dict[str, type | tuple[type, ...]] = {
    'model': str, 'model_kwargs': dict, 'in_chans': int, 'input_size': (list, tuple), 'gp': str, 'bn_momentum': float,
    'bn_eps': float,
}
"""Of arguments of train.py, where they are given."""
_FOREIGN = {
    b'<': 'a web page in place of the file: download it again',
    b'version https://git-lfs': 'a pointer of Git LFS in place of the file: get it with "git lfs pull"',
}
"""What downloads leave, by how it begins."""


@dataclass(frozen=True)
class TrainingRun:
    """What a checkpoint says about the training that wrote it."""

    args: dict[str, Any] = field(default_factory=dict)
    """Arguments of train.py; empty for weights alone."""
    epochs: int | None = None
    """Number of epochs done."""
    averaged: bool = False
    """Whether it holds weights averaged over the steps (EMA), which timm then loads in place of the last ones."""

    @property
    def model(self) -> str | None:
        """Name of the model."""
        return self.args.get('model')

    @property
    def model_args(self) -> dict[str, Any]:
        """Further arguments of ``timm.create_model``, as train.py gave them."""
        given = {name: self.args.get(key) for key, name in _MODEL_ARGS.items()}
        if given['in_chans'] is None and self.args.get('input_size'):
            given['in_chans'] = self.args['input_size'][0]
        return {k: v for k, v in given.items() if v is not None} | (self.args.get('model_kwargs') or {})

    @property
    def data_config(self) -> dict[str, Any]:
        """How the images were prepared, where that was not left to the model's configuration."""
        return {key: self.args[key] for key in _DATA_ARGS if self.args.get(key)}

    @property
    def starts_pretrained(self) -> bool:
        """Whether it began with the weights that the model's configuration names."""
        return bool(self.args.get('pretrained')) and not (
            self.args.get('pretrained_path') or self.args.get('initial_checkpoint'))

    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their labels, None where they cannot be told.

        A checkpoint does not hold them, but says which folder of classes it was trained on, if that is still there.
        """
        root = self.args.get('data_dir') or self.args.get('data')
        if not isinstance(root, str) or self.args.get('dataset') or not os.path.isdir(root):
            return None
        try:
            if self.args.get('class_map'):
                labels = read_class_map(self.args['class_map'], root)
                names = sorted(labels, key=lambda name: labels[name])
            else:
                names = class_names(folder_of_split(root, self.args.get('train_split') or 'train'))
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return None if '' in names else names


def read_training_run(path: str | Path) -> TrainingRun:
    """Read what a checkpoint says beside its weights, without running any code that it may hold.

    Args:
        path: Checkpoint of train.py, or another file of weights that timm can load, which says nothing.

    Returns:
        The run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError('not a checkpoint but a folder; give a file')
    with path.open('rb') as file:
        start = file.read(64).lstrip()
    for beginning, told in _FOREIGN.items():
        if start.startswith(beginning):
            raise ValueError(f'not a checkpoint but {told}')
    if path.suffix == '.safetensors':
        return TrainingRun()
    try:
        checkpoint = load_checkpoint_metadata(str(path))
    except FileNotFoundError:
        raise
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        if 'Unsupported globals' in str(error):
            names = str(error).partition('Unsupported globals: ')[2].partition('. No automatic')[0]
            raise ValueError(
                f'holds more than tensors and plain values ({names}), which could run code, so it was not read; save'
                ' its state_dict alone') from error
        raise ValueError('not a checkpoint that torch.load(weights_only=True) can read') from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f'not a checkpoint: it holds a {type(checkpoint).__name__}, not a dict of weights')
    args, epoch = checkpoint.get('args'), checkpoint.get('epoch')
    args = dict(vars(args)) if isinstance(args, argparse.Namespace) else {}
    for name, kind in _TYPES.items():
        value = args.get(name)
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f'not a checkpoint of train.py: the argument {name} that it records is a {type(value).__name__},'
                f' {reprlib.repr(value)}; save its state_dict alone')
    return TrainingRun(
        args=args,
        epochs=epoch + 1 if isinstance(epoch, int) else None,
        averaged=any(checkpoint.get(key) is not None for key in ('state_dict_ema', 'model_ema')))
