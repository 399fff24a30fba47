"""Straight-through Gumbel-softmax (section 3.2, Eq. 9 to 11): a hard choice with a soft gradient."""

import torch
import torch.nn.functional as F


def gumbel_one_hot(scores: torch.Tensor, tau: float) -> torch.Tensor:
    """Draw one candidate per image.

    The noise is drawn in float32 whatever the type of the scores: in half precision it overflows. The value of the
    result is exactly 0 or 1, not merely close to it, so that multiplying by it changes no logit.

    Args:
        scores: The predictor's output, (B, M) unnormalized log-probabilities.
        tau: Temperature.

    Returns:
        h, (B, M) float32, one-hot in value; its gradient is that of the softmax of Eq. 11.
    """
    log_p = scores.float().log_softmax(dim=1)
    soft = F.gumbel_softmax(log_p, tau=tau, hard=False, dim=1)  # Eq. 10 and 11
    return one_hot(soft) + (soft - soft.detach())  # Eq. 9 forward, Eq. 11 backward


def one_hot(scores: torch.Tensor) -> torch.Tensor:
    """The largest entry of each row as a one-hot row of the same type, (B, M)."""
    return torch.zeros_like(scores).scatter(1, scores.argmax(dim=1, keepdim=True), 1.0)
