"""Starting from a plain timm model: the DRNet around it, with its weights and its preparation of images."""

from typing import Any

from timm.models import get_model_args
from torch import nn

from ..model import DRNet
from .checkpoints import load_weights
from .zoo import create_drnet

_KEPT = ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode', 'label_names', 'label_descriptions', 'license')
"""What a model's configuration says of its images and classes; the rest a DRNet has of the backbone's name."""


def drnet_from(plain: nn.Module, **args: Any) -> DRNet:
    """Make a DRNet of a plain timm model with its weights.

    Every resolution gets the norms of the model, so that at the largest it answers as the model does, to the last bit.

    Args:
        plain: A timm model that ``timm.create_model`` made; it is not changed.
        **args: Of `DRNet`: ``resolutions`` and others.

    Returns:
        The DRNet, as ``timm.create_model('drnet', backbone=...)`` would create it, in eval mode.

    Raises:
        ValueError: If the model is not one of timm's, has no BatchNorm, or was changed after it was created.
    """
    cfg: dict[str, Any] | None = getattr(plain, 'pretrained_cfg', None)
    if cfg is None or not cfg.get('architecture'):
        raise ValueError(f'{type(plain).__name__} is no model of timm.create_model: create it with that.')
    created = {name: value for name, value in get_model_args(plain).items() if value is not None}
    size = args.get('resolutions', cfg['input_size'][-1:])[0]
    model = create_drnet(
        cfg['architecture'],
        **{**created, 'num_classes': plain.num_classes, 'in_chans': plain.in_chans, **args},
        pretrained_cfg_overlay={
            **{key: cfg[key] for key in _KEPT if cfg.get(key) is not None},
            'input_size': (plain.in_chans, size, size), 'num_classes': plain.num_classes})
    load_weights(model, plain.state_dict())
    return model.eval()
