"""FLOP tables: what each candidate resolution costs, counted by fvcore.

FLOPs are multiply-accumulates of convolutions and linear layers, the paper's convention; fvcore's totals would add the
norms. They depend on shapes alone, so a table is counted once, on zeros, when it is first asked for.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from ..cascade.climb import paid_by_stop
from ..core.arguments import DRNetArgs
from ..core.drnet import DRNet
from ..deploy.plain_view import plain_view

with warnings.catch_warnings():  # fvcore scripts a function when imported, which torch has deprecated
    warnings.simplefilter('ignore', FutureWarning)
    from fvcore.nn import FlopCountAnalysis

_Number = TypeVar('_Number', int, float)

_COUNTED = ('conv', 'linear', 'addmm', 'matmul')


@dataclass(frozen=True)
class CostRow:
    """The cost of one image at one candidate resolution, in FLOPs (multiply-accumulates)."""

    resolution: int
    """Side of the image in pixels."""
    backbone_flops: int
    """C_j of Eq. 6: the backbone alone."""
    predictor_flops: int
    """The resolution predictor, the same at every resolution; 0 in a cascade."""
    total_flops: int
    """All that is paid for an image that is classified at this resolution: the backbone, and the predictor where it is
    in use, or the smaller rungs of a cascade."""
    fraction: float
    """Backbone FLOPs as a fraction of those at the largest resolution."""


def cost_table(model: DRNet) -> tuple[CostRow, ...]:
    """The cost of every candidate resolution of a DRNet, largest first.

    The table is kept with the model and counted anew after a change of its layers, such as another classifier.

    Args:
        model: A DRNet with weights.

    Returns:
        One row per candidate.

    Raises:
        ValueError: If the model is on the meta device.

    Examples:
        >>> import timm, timm_drnet
        >>> for row in timm_drnet.cost_table(timm.create_model('drnet_mobilenetv2')):
        ...     print(row.resolution, row.backbone_flops, f'{row.fraction:.3f}')
        224 300774272 1.000
        196 259955264 0.864
        168 188942096 0.628
    """
    key = (model.args, *sorted((n, tuple(p.shape)) for n, p in model.named_parameters()))
    kept = model.__dict__.get('_cost_table')
    if kept is None or kept[0] != key:
        predictor = 0
        if model.predictor is not None:
            predictor = count_flops(model.predictor, model.in_chans, model.args.predictor_size)
        backbone = [count_flops(model.branch(j), model.in_chans, r) for j, r in enumerate(model.resolutions)]
        totals = paid(model.args, backbone, predictor)
        rows = tuple(
            CostRow(r, flops, predictor, total, flops / backbone[0])
            for r, flops, total in zip(model.resolutions, backbone, totals, strict=True)
        )
        kept = model.__dict__['_cost_table'] = (key, rows)
    return kept[1]


def paid(args: DRNetArgs, backbone: Sequence[_Number], predictor: _Number) -> list[_Number]:
    """What is paid for an image that is classified at each resolution.

    Args:
        args: Of the DRNet.
        backbone: Cost of each branch, in any unit.
        predictor: Cost of the predictor.

    Returns:
        One cost for each candidate; of a rung that a cascade leaves out, what it and the smaller ones would cost.
    """
    if args.router == 'cascade':
        return paid_by_stop(args.thresholds, backbone)
    return [cost + predictor if args.uses_predictor else cost for cost in backbone]


def count_flops(module: nn.Module, in_chans: int, size: int) -> int:
    """Count the multiply-accumulates of convolutions and linear layers for one image.

    Args:
        module: An image model. It is traced through a view, so neither its mode nor its norm statistics change.
        in_chans: Channels of the image.
        size: Side of the image in pixels.

    Returns:
        The number of multiply-accumulates.

    Raises:
        ValueError: If the module is on the meta device.
    """
    view = plain_view(module)
    weight = next(view.parameters())
    if weight.is_meta:
        raise ValueError('The model is on the meta device: give it weights before its FLOPs are counted.')
    x = torch.zeros(1, in_chans, size, size, device=weight.device, dtype=weight.dtype)
    analysis = FlopCountAnalysis(view, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # may be called in the middle of a step
        by_operator = analysis.by_operator()
    return int(sum(by_operator[name] for name in _COUNTED))
