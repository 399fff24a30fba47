"""The predictor with the dial inside, for what is made from a model: its argmax is the choice."""

import copy

import torch
from torch import nn

from ..core.drnet import DRNet


def priced_predictor(model: DRNet) -> nn.Module:
    """Put the dial into the predictor.

    What a candidate's score is lowered by is a constant, so it goes into the bias of the last layer.

    Args:
        model: A DRNet with a predictor; it does not change.

    Returns:
        A module from (B, in_chans, s, s) to (B, M): the predictor itself where the dial is at 0, else a copy that
        shares all other weights.
    """
    predictor = model.predictor
    assert predictor is not None
    if not any(model.prices):
        return predictor
    classifier = predictor.get_classifier()  # type: ignore[operator]  # timm models are not typed
    shared = {id(t): t for t in (*predictor.parameters(), *predictor.buffers())}
    shared.pop(id(classifier.bias))
    priced: nn.Module = copy.deepcopy(predictor, shared)
    bias = priced.get_classifier().bias  # type: ignore[operator]
    with torch.no_grad():
        bias.sub_(torch.tensor(model.prices, dtype=bias.dtype, device=bias.device))
    return priced
