"""Cost tables: what each candidate resolution costs, counted by fvcore.

FLOPs are multiply-accumulates of convolutions and linear layers, the paper's convention; fvcore's totals would add the
norms. They depend on shapes alone, so a table is counted once, on zeros, when it is first needed.
"""

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

with warnings.catch_warnings():  # fvcore scripts a function when imported, which torch has deprecated
    warnings.simplefilter('ignore', FutureWarning)
    from fvcore.nn import FlopCountAnalysis

from .latency import latency_table

if TYPE_CHECKING:
    from ..core.drnet import DRNet

_COUNTED = ('conv', 'linear', 'addmm', 'matmul')


@dataclass(frozen=True)
class CostRow:
    """The cost of one image at one candidate resolution, in FLOPs (multiply-accumulates)."""

    resolution: int
    """Side of the image in pixels."""
    backbone_flops: int
    """C_j of Eq. 6: the backbone alone."""
    predictor_flops: int
    """The resolution predictor, the same at every resolution."""
    total_flops: int
    """Backbone and predictor."""
    fraction: float
    """Backbone FLOPs as a fraction of those at the largest resolution."""


@dataclass(frozen=True)
class Costs:
    """What a model weighs its resolutions by: C_j of Eq. 6, in FLOPs or in time."""

    unit: str
    """``GFLOPs`` or ``ms``."""
    backbone: tuple[float, ...]
    """C_j: the backbone at each resolution, for one image."""
    predictor: float
    """The resolution predictor, for one image."""

    def relative(self, like: torch.Tensor) -> torch.Tensor:
        """C_j / C_max, (M,), on the device and in the type of another tensor."""
        return torch.tensor(self.backbone, device=like.device, dtype=like.dtype) / max(self.backbone)


def model_costs(model: 'DRNet') -> Costs:
    """What a model weighs its resolutions by, as its ``cost`` says.

    Asked for the latency of this device, it measures it once and keeps the numbers as the model's ``cost``, so that
    they go where the model goes.

    Args:
        model: A DRNet.

    Returns:
        The costs.
    """
    if model.cost == 'flops':
        rows = cost_table(model)
        return Costs('GFLOPs', tuple(row.backbone_flops / 1e9 for row in rows), rows[0].predictor_flops / 1e9)
    if model.cost == 'latency':
        table = latency_table(model)
        model.cost = (*(row.backbone_ms for row in table), table[0].predictor_ms)
    assert not isinstance(model.cost, str)  # checked when the model was made
    return Costs('ms', model.cost[:-1], model.cost[-1])


def check_cost(cost: str | Sequence[float], num_resolutions: int) -> str | tuple[float, ...]:
    """Check what a model is to weigh its resolutions by.

    Args:
        cost: ``flops``, ``latency``, or milliseconds: of the backbone at each resolution, and of the predictor.
        num_resolutions: Number of candidates.

    Returns:
        The same, numbers as a tuple.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(cost, str):
        if cost in ('flops', 'latency'):
            return cost
    elif len(cost) == num_resolutions + 1 and all(math.isfinite(c) and c >= 0 for c in cost) and min(cost[:-1]) > 0:
        return tuple(float(c) for c in cost)
    raise ValueError(
        f"Invalid cost {cost!r}: use 'flops', 'latency', or {num_resolutions + 1} numbers, the milliseconds of the"
        f' backbone at each of the {num_resolutions} resolutions and those of the predictor.')


def cost_table(model: 'DRNet') -> tuple[CostRow, ...]:
    """The cost of every candidate resolution of a DRNet, largest first.

    The table is kept with the model and counted anew after a change of its layers, such as another classifier.

    Args:
        model: A DRNet.

    Returns:
        One row per candidate.
    """
    key = (model.resolutions, *sorted((n, tuple(p.shape)) for n, p in model.named_parameters()))
    kept = model.__dict__.get('_cost_table')
    if kept is None or kept[0] != key:
        predictor = count_flops(model.predictor, model.in_chans, model.predictor_size)
        backbone = [count_flops(model.branch(j), model.in_chans, r) for j, r in enumerate(model.resolutions)]
        rows = tuple(
            CostRow(r, flops, predictor, flops + predictor, flops / backbone[0])
            for r, flops in zip(model.resolutions, backbone, strict=True)
        )
        kept = model.__dict__['_cost_table'] = (key, rows)
    return kept[1]


def count_flops(module: nn.Module, in_chans: int, size: int) -> int:
    """Count the multiply-accumulates of convolutions and linear layers for one image.

    Args:
        module: An image model. It is traced on a copy that shares the weights, so neither its mode nor its norm
            statistics change.
        in_chans: Channels of the image.
        size: Side of the image in pixels.

    Returns:
        The number of multiply-accumulates.
    """
    tensors = [*module.parameters(), *module.buffers()]
    twin = copy.deepcopy(module, {id(t): t for t in tensors}).eval()
    x = torch.zeros(1, in_chans, size, size, device=tensors[0].device, dtype=tensors[0].dtype)
    analysis = FlopCountAnalysis(twin, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):  # may be called in the middle of a step
        by_operator = analysis.by_operator()
    return int(sum(by_operator[name] for name in _COUNTED))
