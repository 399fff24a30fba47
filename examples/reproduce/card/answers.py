"""What a trained row says of images that it was not trained on, kept small enough to travel back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .images import Images

_BATCH = 500
TOP = 10
"""Classes of each answer that are kept, with the log-probabilities."""


@torch.no_grad()
def collect(
        run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
        images: Images,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run a model in eval mode on all images.

    Args:
        run: From images to logits, (B, R, num_classes), of R resolutions, and scores of a predictor, (B, M), or None.
        images: In order.

    Returns:
        Both for all images, float32 on the CPU.
    """
    logits, scores = [], []
    for x, _ in images.batches(_BATCH):
        with torch.autocast(x.device.type, torch.bfloat16):
            one, score = run(x)
        logits.append(one.float().cpu())
        scores += [] if score is None else [score.float().cpu()]
    return torch.cat(logits), torch.cat(scores) if scores else None


def kept(name: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """The likeliest classes, their log-probabilities and the loss of each answer, under names with a prefix."""
    log_p = logits.log_softmax(dim=-1)
    top = log_p.topk(min(TOP, log_p.shape[-1]), dim=-1)
    labels = labels.cpu()
    losses = torch.stack([F.nll_loss(log_p[:, r], labels, reduction='none') for r in range(log_p.shape[1])], dim=1)
    return {
        f'{name}_log_p': top.values.half().numpy(), f'{name}_classes': top.indices.to(torch.uint8).numpy(),
        f'{name}_loss': losses.half().numpy(), f'{name}_labels': labels.to(torch.uint8).numpy()}


def save(path: Path, arrays: dict[str, Any]) -> None:
    """Write arrays, whole or not at all."""
    part = path.with_suffix('.part')
    with part.open('wb') as file:
        np.savez_compressed(file, **arrays)
    part.rename(path)


def top1(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Per cent of the images classified correctly, for each resolution."""
    hits = logits.argmax(dim=-1) == labels.cpu()[:, None]
    return [round(100 * float(h), 3) for h in hits.double().mean(dim=0)]
