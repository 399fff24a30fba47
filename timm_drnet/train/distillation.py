"""Distillation between resolutions, where an image trains at every one of them; it needs no further pass.

The mean of all logits is a better classifier than those of any resolution. As in RS-Nets (Wang et al., `Resolution
Switchable Networks`, ECCV 2020), it is trained as one, and every resolution learns from its probabilities beside the
labels; larger resolutions can teach smaller ones, too (*top-down*). With z_1 to z_M of the largest to the smallest:

    z = mean_j z_j
    L_ensemble = criterion(z, y) + sum_j KL(stop_gradient(softmax(z)) || softmax(z_j))
    L_topdown = sum_{i < j} KL(stop_gradient(softmax(z_i)) || softmax(z_j))

RS-Nets have two versions: L_ensemble alone, and both with the weight 2 / (M + 1). Their mean has learned weights, which
alone learn from the ensemble's criterion.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F


def ensemble_distillation(
        logits: Sequence[torch.Tensor],
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        target: torch.Tensor,
) -> torch.Tensor:
    """The ensemble's own loss, and how far each resolution is from the ensemble.

    Args:
        logits: At each candidate, (B, num_classes), M of them.
        criterion: Classification loss of logits and targets.
        target: What the criterion takes.

    Returns:
        L_ensemble, a scalar: the divergences are means over images.
    """
    ensemble = torch.stack([each.float() for each in logits]).mean(dim=0)
    return criterion(ensemble, target) + torch.stack([_divergence(ensemble, each) for each in logits]).sum()


def topdown_distillation(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far each resolution is from every larger one.

    Args:
        logits: At each candidate, largest first, (B, num_classes), M of them.

    Returns:
        L_topdown, a scalar: the divergences are means over images.
    """
    pairs = (_divergence(larger, smaller) for larger, smaller in combinations(logits, 2))
    return sum(pairs, torch.zeros((), device=logits[0].device))


def _divergence(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """KL(softmax(teacher) || softmax(student)), of which the teacher does not learn."""
    log_p, log_q = student.float().log_softmax(dim=1), teacher.detach().float().log_softmax(dim=1)
    return F.kl_div(log_p, log_q, reduction='batchmean', log_target=True)
