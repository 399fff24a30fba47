"""A predictor trained without labels: it learns how far each resolution's answer is from the largest's.

The labels of its training are the largest branch's probabilities, so that the cross-entropy at a resolution is, but for
what is the same at all of them, the Kullback-Leibler divergence from the largest's answer: the utility that is lost.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch

from ..cost.costs import measure_costs
from ..model import DRNet
from ..train.predictor import train_predictor
from .branches import Branches, Settings
from .progress import Progress

_KEY = 'predictor'


def train_on_utility(
        model: DRNet,
        branches: Branches,
        settings: Settings,
        progress: Progress,
        report: Callable[[str], object],
) -> None:
    """Train the predictor of a DRNet on the photographs to tune on.

    Args:
        model: The DRNet; its predictor and its ``alpha`` change in place.
        branches: Its branches, adapted.
        settings: How to adapt.
        progress: Where the result is kept.
        report: Called with a line after each epoch.
    """
    assert model.predictor is not None
    costs = measure_costs(model)
    alpha = max(settings.target * costs.backbone[0] - costs.predictor, min(costs.backbone))
    model.args = dataclasses.replace(model.args, alpha=alpha)
    known = progress.get(_KEY)
    if known is not None:
        model.predictor.load_state_dict(known)
        return

    def told(epoch: int, loss: float, shares: tuple[float, ...]) -> None:
        where = ', '.join(f'{side} px {share:.1%}' for side, share in zip(model.resolutions, shares, strict=True))
        report(f'predictor: epoch {epoch} of {settings.predictor_epochs}, loss {loss:.4f}, {where}')

    train_predictor(model, _Taught(branches), settings.predictor_epochs, progress=told)
    progress.keep(_KEY, model.predictor.state_dict())


class _Taught:
    """Views with the largest branch's probabilities, others each time they are gone through."""

    def __init__(self, branches: Branches) -> None:
        self.branches = branches
        self.epoch = 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, logits in self.branches.taught_views(self.epoch):
            yield x, logits.float().softmax(dim=1)
        self.epoch += 1
