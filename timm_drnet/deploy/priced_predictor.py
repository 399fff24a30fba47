"""The predictor with the dial inside, for what is made from a model: its scores alone tell the choice."""

import torch
from torch import nn

from ..core.drnet import DRNet
from .plain_view import plain_view


def priced_predictor(model: DRNet) -> nn.Module:
    """Put the dial into the predictor.

    What a candidate's score is lowered by is a constant, so it goes into the bias of the last layer.

    Args:
        model: A DRNet with a predictor; it does not change.

    Returns:
        A module from (B, in_chans, s, s) to (B, M): the predictor itself where the dial is at 0, else a view of it
        in eval mode that shares all other weights.
    """
    predictor = model.predictor
    assert predictor is not None
    if not any(model.prices):
        return predictor
    priced = plain_view(predictor)
    classifier = priced.get_classifier()  # type: ignore[operator]  # timm models are not typed
    bias = classifier.bias.detach()
    lowered = bias - torch.tensor(model.prices, dtype=bias.dtype, device=bias.device)
    classifier.bias = nn.Parameter(lowered, requires_grad=False)
    return priced


def chosen(scores: torch.Tensor) -> torch.Tensor:
    """The choices that a priced predictor's scores, (B, M), mean: indices, (B,) int64; -1 where not all are finite."""
    return torch.where(scores.isfinite().all(dim=1), scores.argmax(dim=1), -1)
