"""State dicts from elsewhere: those of plain timm backbones become DRNets'."""

import logging
import re
from collections.abc import Iterable

import torch

from ..core.drnet import DRNet
from ..core.norm import ResolutionAwareNorm

_logger = logging.getLogger(__name__)


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: DRNet) -> dict[str, torch.Tensor]:
    """Convert a state dict for a DRNet, as timm's ``pretrained_filter_fn``.

    Args:
        state_dict: Of a DRNet, returned as it is, or of its plain backbone: then every norm goes to all resolutions,
            and the predictor starts by choosing the largest.
        model: The DRNet that is to load it.

    Returns:
        A state dict with the keys of the DRNet.

    Raises:
        ValueError: If the state dict is that of a DRNet with another number of resolutions.
    """
    if any(key.startswith('backbone.') for key in state_dict):
        check_resolutions(state_dict, model)
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


def start_predictor(model: DRNet) -> None:
    """Let an untrained predictor choose the largest resolution, where weights of a plain backbone are at home.

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


def check_resolutions(keys: Iterable[str], model: DRNet) -> None:
    """Refuse the weights of a DRNet with more or fewer resolutions; torch would name every norm there is."""
    found = 1 + max((int(index) for key in keys for index in re.findall(r'\.norms\.(\d+)\.', key)), default=0)
    wanted = len(model.resolutions) if model.args.resolution_aware_norm else 1
    if found != wanted:
        raise ValueError(
            f'The weights have norms for {found} resolutions, but the model has {wanted} sets of them: it was created'
            f' with resolutions={model.resolutions} and resolution_aware_norm={model.args.resolution_aware_norm}. Give'
            ' the arguments that the weights were trained with.')
