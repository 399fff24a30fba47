"""The authors' release as weights of a DRNet."""

import os
from pathlib import Path
from typing import Any

from timm.models import load_pretrained

from ...core.drnet import DRNet
from ..checkpoints import check_arguments
from .names import convert_checkpoints
from .reader import read_checkpoint


def load_release(model: DRNet, classifier: str | os.PathLike[str], cfg: dict[str, Any]) -> None:
    """Load the authors' release, as timm loads pretrained weights: channels and classes are adapted.

    Args:
        model: A DRNet around a ResNet-50.
        classifier: The classifier's file. The predictor's lies beside it and has "predictor" in the place of
            "classifier" in its name.
        cfg: timm's configuration of the release.

    Raises:
        ValueError: If a file is not what it should be, or the model is another network.
    """
    path = Path(classifier)
    predictor = path.with_name(path.name.replace('classifier', 'predictor'))
    state_dict = convert_checkpoints(read_checkpoint(path), read_checkpoint(predictor))
    check_arguments(state_dict, model)
    if state_dict.keys() != model.state_dict().keys():
        raise ValueError(
            "The authors' release is a ResNet-50 with a residual predictor, and the model is another network.")
    source = {**cfg, 'custom_load': False, 'file': None, 'state_dict': state_dict}
    load_pretrained(model, source, model.num_classes, model.in_chans)
