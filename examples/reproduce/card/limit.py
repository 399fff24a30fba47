"""What a predictor could know at best: a router that has seen a network's answer before it chooses, for nothing.

At which resolutions an image is answered correctly is estimated from answers of the network itself: ridge regression on
the log-probabilities and probabilities of the likeliest classes, the first of them times the others, and squares. Each
image is estimated from those of four other parts of five, with their labels. A predictor of a few per cent of the cost
sees less than any of these answers tells.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

_PARTS = 5
_RIDGE = 400.0
"""In images: the features have variance 1."""


def expected_scores(path: Path, seen: Sequence[int]) -> torch.Tensor:
    """Estimate where the validation images are answered correctly from what the network answers at some resolutions.

    Args:
        path: What a row left.
        seen: Resolutions whose answers are known, largest 0.

    Returns:
        The expected accuracy at each, less each image's average, (N, R) float64.
    """
    with np.load(path) as arrays:
        log_p = torch.from_numpy(arrays['val_log_p'].astype(np.float64))[:, list(seen)].flatten(1)
        hits = torch.from_numpy(arrays['val_classes'][..., 0] == arrays['val_labels'][:, None]).double()
    x = torch.cat([log_p, log_p.exp()], dim=1)
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    x = torch.cat([x, x[:, :1] * x[:, 1:], x.square(), torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    y = hits - hits.mean(dim=1, keepdim=True)
    part = torch.arange(len(x)) % _PARTS
    estimated = torch.empty_like(y)
    for k in range(_PARTS):
        known_x, known_y = x[part != k], y[part != k]
        gram = known_x.T @ known_x + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
        estimated[part == k] = x[part == k] @ torch.linalg.solve(gram, known_x.T @ known_y)
    return estimated
