"""State dicts from elsewhere: those of plain timm backbones become DRNets'."""

import logging
import os
import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import nn

from ..core.drnet import DRNet
from ..core.norm import ResolutionAwareNorm
from ..data.pixels import first_line

_logger = logging.getLogger(__name__)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: DRNet) -> dict[str, torch.Tensor]:
    """Convert a state dict for a DRNet, as timm's ``pretrained_filter_fn``.

    Args:
        state_dict: Of a DRNet, returned as it is, but without a predictor for a cascade; or of its plain backbone: then
            every norm goes to all resolutions, and the predictor starts by choosing the largest. A cascade whose norms
            are the same at all of its resolutions is a plain backbone, too, where another DRNet is to load it.
        model: The DRNet that is to load it.

    Returns:
        A state dict with the keys of the DRNet.

    Raises:
        ValueError: If the state dict is that of a DRNet with another number of resolutions, or its keys have a prefix.
    """
    _check_prefix(state_dict, model)
    if not _fits(state_dict, model):
        state_dict = _as_plain(state_dict) or state_dict
    if any(key.startswith('backbone.') for key in state_dict):
        check_arguments(state_dict, model)
        if model.predictor is None:  # a cascade of a backbone that was trained beside a predictor
            return {key: value for key, value in state_dict.items() if not key.startswith('predictor.')}
        return state_dict
    norms = {
        name: len(module.norms) for name, module in model.backbone.named_modules()
        if isinstance(module, ResolutionAwareNorm)
    }
    converted = {}
    if model.predictor is not None:
        start_predictor(model)
        converted = {f'predictor.{key}': value for key, value in model.predictor.state_dict().items()}
    for key, value in state_dict.items():
        parent, _, leaf = key.rpartition('.')
        if parent in norms:
            converted.update({f'backbone.{parent}.norms.{j}.{leaf}': value for j in range(norms[parent])})
        else:
            converted[f'backbone.{key}'] = value
    return converted


def read_weights(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Read the weights in a checkpoint as timm does: averaged ones first, without the prefixes of its wrappers.

    Args:
        path: A checkpoint of train.py, a file of ``torch.save`` or safetensors.

    Returns:
        The state dict.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    try:
        state_dict: dict[str, torch.Tensor] = load_state_dict(os.fspath(path))
    except FileNotFoundError:
        raise
    except (
            RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, pickle.UnpicklingError,
            SafetensorError) as error:
        raise ValueError(f'not a checkpoint ({first_line(error)})') from error
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(
                f'holds no weights: it has a {type(value).__name__} as {key!r} where a state dict has tensors; save the'
                " model's state_dict()")
    return state_dict


def count_classes(state_dict: Mapping[str, torch.Tensor], model: nn.Module) -> int | None:
    """Number of classes that weights are for.

    Args:
        state_dict: Of a DRNet or its plain backbone.
        model: The DRNet that is to load it.

    Returns:
        The number of rows of the classifier, None if there is none.
    """
    for name in _classifiers(model):
        for key in (f'{name}.weight', f'{name}.weight'.removeprefix('backbone.')):
            if key in state_dict and state_dict[key].ndim:
                return len(state_dict[key])
    return None


def load_weights(model: DRNet, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load weights for inference: the model's own, and all of them. A model without a classifier leaves theirs out.

    Args:
        model: The DRNet, changed in place.
        state_dict: Of a DRNet or its plain backbone.

    Raises:
        ValueError: If the weights are those of another model, or for another number of classes.
    """
    found = count_classes(state_dict, model)
    if found is not None and model.num_classes not in (0, found):
        raise ValueError(f'the weights are for {found} classes, not {model.num_classes}; leave the number out')
    converted = dict(checkpoint_filter_fn(dict(state_dict), model))
    for name in () if model.num_classes else _classifiers(model):
        for leaf in ('weight', 'bias'):
            converted.pop(f'{name}.{leaf}', None)
    if misfit := _find_misfit(converted, model.state_dict()):
        raise ValueError(f'{misfit}: the weights are those of another model, or it was created with other arguments')
    model.load_state_dict(converted)


def load_plain_weights(model: nn.Module, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Load weights into a plain timm model: its own, and all of them.

    Args:
        model: The model, changed in place.
        state_dict: Its weights.

    Raises:
        ValueError: If the weights are those of another model, or for another number of classes.
    """
    if misfit := _find_misfit(state_dict, model.state_dict()):
        raise ValueError(f'{misfit}: the weights are those of another model, or it was created with other arguments')
    model.load_state_dict(dict(state_dict), strict=False)  # old files do not count batches


def check_finite(state_dict: Mapping[str, torch.Tensor]) -> None:
    """Refuse weights that hold no numbers, as those of a training that diverged.

    Args:
        state_dict: Of any model.

    Raises:
        ValueError: If a value is infinite or NaN.
    """
    for key, value in state_dict.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f'the weights are damaged: {key} has values that are infinite or not a number')


def start_predictor(model: DRNet) -> None:
    """Let an untrained predictor choose the largest resolution, the one that a plain backbone was trained at.

    Only its classifier is set. In training the other resolutions are drawn too, 21 % of the time each if there are
    three, so it can learn.

    Args:
        model: The DRNet, changed in place; a cascade needs no start.
    """
    if model.predictor is None:
        return
    classifier = model.predictor.get_classifier()  # type: ignore[operator]  # timm models are not typed
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.zero_()
        classifier.bias[0] = 1
    if model.args.uses_predictor:
        _logger.warning(
            f'The weights are those of a plain backbone, and the resolution predictor is untrained: it chooses'
            f' {model.resolutions[0]} px for every image. Train both stages to make the model dynamic; see "Train" in'
            ' the README of timm-drnet.')


def check_arguments(keys: Collection[str], model: DRNet) -> None:
    """Refuse the weights of a DRNet with other resolutions or another router; torch would name every weight there is.

    Raises:
        ValueError: If the norms are for more or fewer resolutions, or a predictor is wanted and there is none.
    """
    found, wanted = _count_norms(keys), _count_wanted_norms(model)
    if found != wanted:
        raise ValueError(
            f'The weights have norms for {found} resolutions, but the model has {wanted} sets of them: it was created'
            f' with resolutions={model.resolutions} and resolution_aware_norm={model.args.resolution_aware_norm}. Give'
            ' the arguments that the weights were trained with.')
    if model.predictor is not None and not any(key.startswith('predictor.') for key in keys):
        raise ValueError(
            f'The weights have no predictor, but the model has one: it was created with router={model.args.router!r}.'
            " Give router='cascade', which the weights are for, or train a predictor.")


def _count_norms(keys: Iterable[str]) -> int:
    """Sets of norms in a state dict."""
    return 1 + max((int(index) for key in keys for index in re.findall(r'\.norms\.(\d+)\.', key)), default=0)


def _count_wanted_norms(model: DRNet) -> int:
    return len(model.resolutions) if model.args.resolution_aware_norm else 1


def _fits(keys: Collection[str], model: DRNet) -> bool:
    """Whether a DRNet has what is in a state dict of a DRNet."""
    has_predictor = model.predictor is None or any(key.startswith('predictor.') for key in keys)
    return has_predictor and _count_norms(keys) == _count_wanted_norms(model)


def _as_plain(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor] | None:
    """The plain backbone that a cascade is made of; None if it is none, or its norms have become different.

    Norms that all resolutions share were trained at all of them and are no plain backbone's.
    """
    if not any('.norms.' in key for key in state_dict) or any(not key.startswith('backbone.') for key in state_dict):
        return None
    plain: dict[str, torch.Tensor] = {}
    for key, value in state_dict.items():
        name = re.sub(r'\.norms\.\d+\.', '.', key.removeprefix('backbone.'))
        if not torch.equal(plain.setdefault(name, value), value):
            return None
    return plain


def _check_prefix(keys: Iterable[str], model: DRNet) -> None:
    """Refuse weights whose names have a part before them, such as that of the attribute of a LightningModule."""
    own = ('backbone', 'predictor', *(name for name, _ in model.backbone.named_children()))
    if any(key.partition('.')[0] in own for key in keys):
        return
    match = next(filter(None, (re.match(rf'(.+?\.)(?:{"|".join(own)})\.', key) for key in keys)), None)
    if match:
        prefix, example = match[1], match.string
        raise ValueError(
            f'The names of the weights begin with {prefix!r}, such as {example!r}; Lightning adds it, as other wrappers'
            f' do. Save them without: {{k.removeprefix({prefix!r}): v for k, v in state_dict.items()}}.')


def _find_misfit(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> str | None:
    """The first thing that keeps a state dict from being loaded; torch would name everything."""
    # Weights from before PyTorch 0.4.1 do not count batches, which is fine.
    missing = [key for key in wanted if key not in found and not key.endswith('.num_batches_tracked')]
    unknown = [key for key in found if key not in wanted]
    other = [key for key in wanted if key in found and found[key].shape != wanted[key].shape]
    if missing:
        return f'{missing[0]} is missing' + (f', and there is {unknown[0]} in the file' if unknown else '')
    if other:
        shape, own = (tuple(state_dict[other[0]].shape) for state_dict in (found, wanted))
        return f'{other[0]} is {shape} in the file and {own} in the model'
    if unknown:
        return f'the model has no {unknown[0]}'
    return None


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of a DRNet's classifiers, of which nearly every model has one."""
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm's attribute
    names = cfg.get('classifier') or ()
    return (names,) if isinstance(names, str) else tuple(names)
