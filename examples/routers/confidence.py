"""Measures of how sure an answer is, by what they are worth to a cascade of one rung and the largest size.

The images least sure at the rung go on. A better measure sends on those that the largest size puts right, so that more
images are classified correctly at the same cost.
"""

from collections.abc import Callable
from typing import Any

import torch

SHARES = [share / 100 for share in range(10, 81, 5)]
"""Of the images that go on; a measure is compared by its average over them."""
_RIDGE, _PARTS = 30.0, 10

Measure = Callable[[torch.Tensor], torch.Tensor]


def probability(logits: torch.Tensor) -> torch.Tensor:
    """The largest probability, which is what a cascade of this package stops by."""
    return logits.softmax(dim=1).amax(dim=1)


def margin(logits: torch.Tensor) -> torch.Tensor:
    """The largest probability less the second."""
    top = logits.softmax(dim=1).topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def negated_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Of all probabilities."""
    return -torch.special.entr(logits.softmax(dim=1)).sum(dim=1)


MEASURES: dict[str, Measure] = {
    'margin of the two likeliest': margin,
    'entropy': negated_entropy,
    'probability at temperature 2': lambda logits: probability(logits / 2),
    'probability at temperature 0.5': lambda logits: probability(2 * logits),
}


def compare_measures(
        unlabelled: torch.Tensor,
        test: torch.Tensor,
        labels: torch.Tensor,
        index: int,
) -> dict[str, dict[str, float]]:
    """Compare measures with the largest probability at one rung.

    Args:
        unlabelled: Logits of images to learn a measure from, (U, M, num_classes).
        test: Of labelled ones, (N, M, num_classes).
        labels: (N,).
        index: The rung's, at least 1.

    Returns:
        Of each measure, points of top-1 more than with the largest probability, with the ends of a 95 % interval,
        paired by image.
    """
    rung, largest = test[:, index].double(), test[:, 0].double()
    right, would = (rung.argmax(dim=1) == labels).double(), (largest.argmax(dim=1) == labels).double()
    scores = {name: measure(rung) for name, measure in MEASURES.items()}
    own, teacher = unlabelled[:, index].double(), unlabelled[:, 0].double().softmax(dim=1)
    lost = teacher.amax(dim=1) - teacher.gather(1, own.argmax(dim=1, keepdim=True))[:, 0]
    scores['learned without labels'] = -_regressed(_features(own), lost, _features(rung))
    scores['learned with the labels of nine tenths'] = -_cross_fitted(_features(rung), would - right)
    base = _averaged(probability(rung), right, would)
    return {name: _interval(_averaged(score, right, would) - base) for name, score in scores.items()}


def _averaged(sure: torch.Tensor, right: torch.Tensor, would: torch.Tensor) -> torch.Tensor:
    """Whether each image is right, averaged over shares that go on."""
    rank = sure.argsort(stable=True).argsort()  # 0 is the least sure
    going = torch.stack([rank < round(share * len(sure)) for share in SHARES]).double().mean(dim=0)
    return going * would + (1 - going) * right


def _features(logits: torch.Tensor) -> torch.Tensor:
    """The five likeliest classes' probabilities and their logarithms, entropy, and the logits' scale."""
    log_p = logits.log_softmax(dim=1).topk(min(5, logits.shape[1]), dim=1).values
    return torch.cat([
        log_p, log_p.exp(), negated_entropy(logits)[:, None], logits.logsumexp(dim=1, keepdim=True),
        logits.amax(dim=1, keepdim=True)], dim=1)


def _regressed(x: torch.Tensor, y: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Ridge regression on features and their squares."""
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)

    def columns(features: torch.Tensor) -> torch.Tensor:
        scaled = (features - mean) / deviation
        return torch.cat([scaled, scaled.square(), torch.ones_like(scaled[:, :1])], dim=1)

    known = columns(x)
    gram = known.T @ known + _RIDGE * torch.eye(known.shape[1], dtype=known.dtype)
    return columns(at) @ torch.linalg.solve(gram, known.T @ y)


def _cross_fitted(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Each image's value, estimated from the other parts; the images are in the order of their classes."""
    part = torch.arange(len(x)) % _PARTS
    estimated = torch.empty_like(y)
    for k in range(_PARTS):
        estimated[part == k] = _regressed(x[part != k], y[part != k], x[part == k])
    return estimated


def _interval(gains: torch.Tensor) -> dict[str, Any]:
    error = 1.96 * float(gains.std()) / len(gains)**0.5
    mean = float(gains.mean())
    return {'difference': 100 * mean, 'low': 100 * (mean - error), 'high': 100 * (mean + error)}
