"""Ensemble distillation: what all resolutions say together teaches each of them.

Where an image trains at every resolution, the mean of their logits is a better classifier than any of them, and costs
nothing more. As in RS-Nets (Wang et al., `Resolution Switchable Networks`, ECCV 2020), it is trained as one, and every
resolution learns from its probabilities beside the labels:

    z = mean_j z_j
    L = criterion(z, y) + sum_j KL(stop_gradient(softmax(z)) || softmax(z_j))
"""

from collections.abc import Callable, Sequence

import torch


def ensemble_distillation(
        logits: Sequence[torch.Tensor],
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        target: torch.Tensor,
) -> torch.Tensor:
    """What the ensemble adds to the sum of the resolutions' own losses.

    Args:
        logits: At each candidate, (B, num_classes), M of them.
        criterion: Classification loss of logits and targets.
        target: What the criterion takes.

    Returns:
        L, a scalar: the divergences are means over images.
    """
    ensemble = torch.stack([each.float() for each in logits]).mean(dim=0)
    log_q = ensemble.detach().log_softmax(dim=1)
    divergences = [(log_q.exp() * (log_q - each.float().log_softmax(dim=1))).sum(dim=1).mean() for each in logits]
    return criterion(ensemble, target) + torch.stack(divergences).sum()
