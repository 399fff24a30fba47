"""Costs: what a model weighs its resolutions by, C_j of Eq. 6, in FLOPs or in time."""

from dataclasses import dataclass, replace

from ..core.drnet import DRNet
from .flops import cost_table
from .latency import latency_table


@dataclass(frozen=True)
class Costs:
    """What one image costs."""

    unit: str
    """``GFLOPs`` or ``ms``."""
    backbone: tuple[float, ...]
    """C_j: the backbone at each resolution, largest first."""
    predictor: float
    """The resolution predictor, in the unit; 0 where none is in use."""

    @property
    def relative(self) -> tuple[float, ...]:
        """C_j / C_max of each resolution."""
        return tuple(c / max(self.backbone) for c in self.backbone)


def measure_costs(model: DRNet) -> Costs:
    """Find out what a model weighs its resolutions by, as its ``cost`` says.

    Asked for the latency of this device, it measures that and keeps the numbers as the model's ``cost``, so that they
    go where the model goes.

    Args:
        model: A DRNet with weights, on the device to measure.

    Returns:
        The costs.

    Raises:
        ValueError: If the model has no weights to measure with.
    """
    if model.args.cost == 'flops':
        rows = cost_table(model)
        return Costs('GFLOPs', tuple(row.backbone_flops / 1e9 for row in rows), rows[0].predictor_flops / 1e9)
    if model.args.cost == 'latency':
        table = latency_table(model)
        model.args = replace(model.args, cost=(*(row.backbone_ms for row in table), table[0].predictor_ms))
    assert not isinstance(model.args.cost, str)
    return Costs('ms', model.args.cost[:-1], model.args.cost[-1])


def set_cost_weight(model: DRNet, cost_weight: float) -> None:
    """Turn the dial to a position: the choice becomes argmax(log p_j - w * C_j / C_max).

    Args:
        model: A DRNet with weights, changed in place.
        cost_weight: The position w; 0 is the choice as trained.

    Raises:
        ValueError: If it is not finite.
    """
    model.args = replace(model.args, cost_weight=float(cost_weight))
    relative = measure_costs(model).relative if cost_weight else [0.0] * len(model.resolutions)
    model.prices = tuple(cost_weight * c for c in relative)
