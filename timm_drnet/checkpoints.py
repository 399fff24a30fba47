"""State dicts from elsewhere: a plain timm backbone becomes the start of a DRNet."""

from typing import TYPE_CHECKING

import torch

from .norm import ResolutionAwareNorm

if TYPE_CHECKING:
    from .drnet import DRNet


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: 'DRNet') -> dict[str, torch.Tensor]:
    """Convert a state dict for a DRNet, as timm's ``pretrained_filter_fn``.

    Args:
        state_dict: Of a DRNet, returned as it is, or of its plain backbone: then every norm goes to all resolutions,
            and the predictor keeps the weights that it has.
        model: The DRNet that is to load it.

    Returns:
        A state dict with the keys of the DRNet.
    """
    if any(key.startswith('backbone.') for key in state_dict):
        return state_dict
    norms = {
        name: len(module.norms) for name, module in model.backbone.named_modules()
        if isinstance(module, ResolutionAwareNorm)
    }
    converted = {f'predictor.{key}': value for key, value in model.predictor.state_dict().items()}
    for key, value in state_dict.items():
        parent, _, leaf = key.rpartition('.')
        if parent in norms:
            converted.update({f'backbone.{parent}.norms.{j}.{leaf}': value for j in range(norms[parent])})
        else:
            converted[f'backbone.{key}'] = value
    return converted
