"""The predictor with the dial inside, for what is made from a model: its argmax is the choice."""

import copy

import torch
from torch import nn

from ..core.drnet import DRNet


def priced_predictor(model: DRNet) -> nn.Module:
    """Put the dial into the predictor.

    What a candidate's score is lowered by is a constant, so it goes into the bias of the last layer.

    Args:
        model: A DRNet; it does not change.

    Returns:
        A module from (B, in_chans, s, s) to (B, M): the predictor itself where the dial is at 0, else a copy that
        shares all other weights.
    """
    if not any(model.prices):
        return model.predictor
    classifier = model.predictor.get_classifier()  # type: ignore[operator]  # timm models are not typed
    shared = {id(t): t for t in (*model.predictor.parameters(), *model.predictor.buffers())}
    shared.pop(id(classifier.bias))
    priced = copy.deepcopy(model.predictor, shared)
    bias = priced.get_classifier().bias  # type: ignore[operator]
    with torch.no_grad():
        bias.sub_(torch.tensor(model.prices, dtype=bias.dtype, device=bias.device))
    return priced
