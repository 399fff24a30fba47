"""Answers: all that a DRNet says about labelled images, collected in one pass over the data.

In eval mode an answer does not depend on the other images of a batch. So what the model does as it is used is its
answer at the resolution that it chose, and need not be computed once more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..core.drnet import DRNet
from .validation import check_labels, hits


@dataclass(frozen=True, eq=False)
class Answers:
    """N images at M candidate resolutions, the largest first; all tensors are on the CPU."""

    labels: torch.Tensor
    """The right class, (N,) integers."""
    choices: torch.Tensor
    """Index of the resolution that the model chose, (N,) integers."""
    probabilities: torch.Tensor
    """The predictor's, of each resolution, (N, M) float64: the softmax of its scores (Eq. 1), before the dial."""
    predictions: torch.Tensor
    """The class with the largest logit at each resolution, (N, M) integers."""
    hits: torch.Tensor
    """Whether the label is first, and whether it is one of the first k, at each resolution, (N, M, 2) booleans."""


@torch.inference_mode()
def collect_answers(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        amp: bool = False,
) -> Answers:
    """Ask a DRNet about every image: the predictor once, the classifier at each resolution.

    Args:
        model: A DRNet in the joint stage, on the device to use. It is put in eval mode for it.
        batches: Images, (B, C, S, S), and their labels, (B,) integers, on any device.
        amp: Whether to run under autocast to bfloat16.

    Returns:
        The answers, in the order of the images.

    Raises:
        ValueError: If the predictor is not in use, the model has no classifier, an output is not finite, or there is no
            image or no such label.
    """
    check_analyzable(model)
    weight = next(model.parameters())
    k = min(5, model.num_classes)
    columns: list[tuple[torch.Tensor, ...]] = []
    was_training = model.training
    model.eval()
    try:
        for images, target in batches:
            check_labels(target, model.num_classes)
            x = images.to(weight.device, weight.dtype)
            labels = target.to(weight.device)
            with torch.autocast(weight.device.type, torch.bfloat16, enabled=amp):
                scores = model.predictor_scores(x)
                choices = model.predict_resolution(x)
                logits = [model.forward_at(x, j) for j in range(len(model.resolutions))]
            if not scores.isfinite().all():
                raise ValueError(
                    'The predictor gives scores that are not finite: the weights of the model are damaged.')
            found = torch.stack([hits(one, labels, k) for one in logits], dim=1)
            # Not argmax, which may take another one of equal logits than the hits do.
            predictions = torch.stack([one.topk(k, dim=1).indices[:, 0] for one in logits], dim=1)
            probabilities = scores.double().softmax(dim=1)
            columns.append(tuple(column.cpu() for column in (labels, choices, probabilities, predictions, found)))
    finally:
        model.train(was_training)
    if not columns:
        raise ValueError('There are no images to analyze.')
    return Answers(*(torch.cat(column) for column in zip(*columns, strict=True)))


def check_analyzable(model: DRNet) -> None:
    """Refuse a model that chooses no resolutions or knows no classes.

    Args:
        model: A DRNet.

    Raises:
        ValueError: If the predictor is not in use, or the model has no classifier.
    """
    if model.args.stage != 'joint':
        raise ValueError(
            f'The model is of the {model.args.stage} stage, in which the predictor is not in use and there are no'
            " choices to analyze: take a model of the joint stage (stage='joint').")
    if model.num_classes < 1:
        raise ValueError('The model has no classifier (num_classes=0), so there is nothing to analyze.')
