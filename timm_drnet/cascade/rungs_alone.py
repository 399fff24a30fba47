"""A cascade without the candidates that its dial leaves out, for places where the dial stays where it is."""

import copy
from dataclasses import replace

from torch import nn

from ..core.drnet import DRNet
from ..core.norm import ResolutionAwareNorm
from .climb import rungs


def rungs_alone(model: DRNet) -> DRNet:
    """The part of a cascade that runs.

    Args:
        model: A DRNet, which is not changed.

    Returns:
        A cascade with the same answers whose candidates are the rungs; the model itself where nothing is left out.
    """
    kept = sorted(rungs(model.args.thresholds))
    if model.args.router != 'cascade' or len(kept) == len(model.resolutions):
        return model
    model = copy.deepcopy(model)
    for norm in model.backbone.modules():
        if isinstance(norm, ResolutionAwareNorm) and len(norm.norms) > 1:
            norm.norms = nn.ModuleList(norm.norms[j] for j in kept)
    args = model.args
    cost = args.cost if isinstance(args.cost, str) else (*(args.cost[j] for j in kept), args.cost[-1])
    model.args = replace(
        args, resolutions=tuple(args.resolutions[j] for j in kept),
        thresholds=tuple(args.thresholds[j - 1] for j in kept[1:]), cost=cost)
    model.prices = (0.0,) * len(kept)
    return model
