"""Climbing: every image runs at the smallest candidate; those whose answer is not confident enough go on.

A rung is a candidate at which an image may stop. Its threshold is the least confidence, the largest softmax
probability, with which it does; a rung without a threshold is left out. The largest candidate answers all that is left.
Confidence of the network itself is the usual measure of when a cascade may stop (Wang et al., `Wisdom of Committees`,
ICLR 2022); a predictor that has not seen what the classifier has seen knows far less of difficulty.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from ..core.routing import eager

_Number = TypeVar('_Number', int, float)


def rungs(thresholds: Sequence[float | None]) -> list[int]:
    """The candidates that run, the smallest first; the last is the largest, 0."""
    return [j for j in range(len(thresholds), 0, -1) if thresholds[j - 1] is not None] + [0]


def paid_by_stop(thresholds: Sequence[float | None], costs: Sequence[_Number]) -> list[_Number]:
    """What an image pays in all that stops at each candidate.

    Args:
        thresholds: Of the candidates but the largest.
        costs: Of each candidate, in any unit.

    Returns:
        One cost for each candidate; of a rung that is left out, what it and the smaller ones would cost.
    """
    ran = rungs(thresholds)
    return [cost + sum(costs[k] for k in ran if k > j) for j, cost in enumerate(costs)]


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability of each row of logits, (B, num_classes), as (B,) float32."""
    return logits.float().softmax(dim=1).amax(dim=1)


@eager
def climb(
        x: torch.Tensor,
        thresholds: Sequence[float | None],
        run: Callable[[int, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Run every image from the smallest rung up until its answer is confident enough.

    There is one wait for the device at each rung but the last: reading how many images stop.

    Args:
        x: Images, (B, C, S, S), in any memory format, which the parts keep; or their indices, (B,).
        thresholds: Of the candidates but the largest.
        run: Called with a candidate and its images, at most once per rung; returns logits, (images, num_classes).

    Returns:
        The logits of the rung where each image stopped, (B, num_classes); its index, (B,) int64; and the number of
        images that ran at each candidate, which may be several of them for an image.

    Raises:
        ValueError: If there is one class, whose probability is always 1.
    """
    outputs, order, stopped = [], [], []
    ran = [0] * (len(thresholds) + 1)
    part, index = x, torch.arange(len(x), device=x.device)
    for j in rungs(thresholds):
        logits = run(j, part)
        if logits.shape[1] < 2:
            raise ValueError('A cascade needs two classes or more: the softmax of one is always certain.')
        ran[j] = len(part)
        stay = len(part)
        threshold = thresholds[j - 1] if j else None
        if threshold is not None:
            stops = confidence(logits) >= threshold
            stay = int(stops.sum())  # the wait
            if stay < len(part):
                front = torch.argsort(stops, descending=True, stable=True)  # those that stop, then those that go on
                logits, index = logits[front[:stay]], index[front]
        outputs.append(logits)
        order.append(index[:stay])
        stopped.append(torch.full_like(index[:stay], j))
        if stay == len(part):
            break
        index = index[stay:]
        part = x[index]
    if len(outputs) == 1:  # all at the first rung, in their order
        return outputs[0], stopped[0], ran
    back = torch.cat(order).argsort()
    return torch.cat(outputs)[back], torch.cat(stopped)[back], ran
