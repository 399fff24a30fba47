"""The utility of every resolution: a predictor's target for each image, at prices that meet the budget.

Each image tells of every resolution j, chosen or not, what it loses there (l_j, cross-entropy) and pays (C_j). The
target is soft, and a price per cost, the same for all images of a batch, is such that the targets spend alpha:

    u_j = l_j + price * C_j / C_max
    q_j = softmax_j(-u_j / tau),  price >= 0 the least with  mean_images sum_j q_j C_j <= alpha
    L = mean_images KL(q || p)

This is an optimal transport between images and resolutions, softened by entropy, whose shares are free but for their
cost. A predictor cannot collapse by it: what it says changes neither losses nor targets, and images whose losses differ
most go first.
"""

from collections.abc import Sequence

import torch

_ROUNDS, _TRIED = 5, 33
"""In which the interval that the price lies in shrinks, and prices tried at once in each: one part of 32 remains."""


def utility_loss(
        p: torch.Tensor,
        losses: torch.Tensor,
        costs: Sequence[float],
        alpha: float | None,
        tau: float,
) -> torch.Tensor:
    """How far a predictor is from the targets.

    Args:
        p: Its probability of each candidate, (B, M).
        losses: Of each image at each candidate, (B, M), without a gradient.
        costs: C_j of each candidate, in the unit of alpha.
        alpha: Target average, or None for free choice.
        tau: Temperature of the targets, in the unit of the losses.

    Returns:
        L, a scalar.
    """
    q = utility_targets(losses, costs, alpha, tau)
    log_p = p.float().clamp(min=torch.finfo(torch.float32).tiny).log()
    divergence: torch.Tensor = (torch.special.xlogy(q, q) - q * log_p).sum(dim=1).mean()
    return divergence


@torch.no_grad()
def utility_targets(losses: torch.Tensor, costs: Sequence[float], alpha: float | None, tau: float) -> torch.Tensor:
    """The probability that each candidate should have, (B, M) float32; the arguments are those of `utility_loss`.

    All is computed on the device of the losses, which is not waited for. Of several ranks each meets alpha with its own
    images.
    """
    losses = losses.float()
    if alpha is None:
        return (-losses / tau).softmax(dim=1)
    prices = torch.stack([torch.full((), c / max(costs), device=losses.device) for c in costs])  # (M,)
    # At the upper end, even the image that gains most takes the cheapest, as far as the temperature lets it.
    step = min((abs(a - b) for a in costs for b in costs if a != b), default=1.0) / max(costs)
    low, high = losses.new_zeros(1), ((losses.amax() - losses.amin() + 30 * tau) / step).view(1)
    for _ in range(_ROUNDS):
        tried = low + (high - low) * torch.linspace(0, 1, _TRIED, device=losses.device)
        q = (-(losses + tried[:, None, None] * prices) / tau).softmax(dim=2)  # (_TRIED, B, M)
        dear = ((q @ prices).mean(dim=1) > alpha / max(costs)).sum().clamp(max=_TRIED - 1).view(1)
        low, high = tried.index_select(0, (dear - 1).clamp(min=0)), tried.index_select(0, dear)
    return (-(losses + high * prices) / tau).softmax(dim=1)
