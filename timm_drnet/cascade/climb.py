"""Climbing: every image runs at the smallest candidate; those whose answer is not confident enough go on.

A rung is a candidate at which an image may stop. Its threshold is the least confidence, the largest softmax
probability, with which it does; a rung without a threshold is left out. The largest candidate answers all that is left.
Confidence of the network itself is the usual measure of when a cascade may stop (Wang et al., `Wisdom of Committees`,
ICLR 2022); a predictor that has not seen what the classifier has seen knows far less of difficulty.
"""

from collections.abc import Callable, Sequence

import torch

from ..core.routing import eager

Thresholds = tuple[float | None, ...]
"""One for each candidate but the largest, in the order of the resolutions."""


def rungs(thresholds: Sequence[float | None]) -> list[int]:
    """The candidates that run, the smallest first; the last is the largest, 0."""
    return [j for j in range(len(thresholds), 0, -1) if thresholds[j - 1] is not None] + [0]


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
        x: Images, (B, C, S, S), in any memory format, which the parts keep, or whatever else stands for them.
        thresholds: Of the candidates but the largest.
        run: Called with a candidate and its images, at most once per rung; returns logits, (images, num_classes).

    Returns:
        The logits of the rung where each image stopped, (B, num_classes); its index, (B,) int64; and the number of
        images that ran at each candidate, which may be several of them for an image.
    """
    outputs, order, stopped = [], [], []
    ran = [0] * (len(thresholds) + 1)
    part, index = x, torch.arange(len(x), device=x.device)
    for j in rungs(thresholds):
        logits = run(j, part)
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
