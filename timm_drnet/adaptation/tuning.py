"""Tuning a smaller branch without labels: it learns to answer as the largest does.

The convolutions and the statistics stay. What is trained are the scales and shifts of the norms that the branch has
for itself, by the Kullback-Leibler divergence from the largest branch's softmax (Hinton et al., `Distilling the
Knowledge in a Neural Network`, 2015) on the same views of the photographs.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F

from ..core.drnet import DRNet
from ..deploy.eval_mode import evaluating
from ..deploy.pieces import pieces
from .norms import only_trainable

_WARMUP = 5
"""Steps before the learning rate is what it shall be: Adam's first ones are as long as all others."""


def tune_norms(
        model: DRNet,
        index: int,
        views: Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor]]],
        epochs: int,
        steps: int,
        lr: float,
        resume: dict[str, Any] | None = None,
        after_epoch: Callable[[int, float, dict[str, Any]], object] = lambda epoch, loss, state: None,
) -> None:
    """Tune the norms of a candidate.

    Args:
        model: A DRNet on the device to use; the candidate's norms change in place.
        index: Of the candidate.
        views: Called with the number of the epoch, from 0; returns batches of images, (B, C, S, S), each with the
            logits of the largest branch for them, (B, num_classes).
        epochs: How many.
        steps: In an epoch, for the schedule.
        lr: Adam's learning rate, at its highest; it then falls along a cosine.
        resume: What ``after_epoch`` was given last, for a tuning that was interrupted; the norms are then as they were.
        after_epoch: Called with the number of epochs that are done, the last one's average loss, and a state to resume
            from.

    Raises:
        ValueError: If the loss is not finite.
    """
    weight = next(model.parameters())
    with evaluating(model), only_trainable(model, index) as parameters:
        if not parameters:
            return  # norms without scale and shift
        optimizer = torch.optim.Adam(parameters, lr)
        first = 0
        if resume is not None:
            optimizer.load_state_dict(resume['optimizer'])
            first = resume['epoch']
        for epoch in range(first, epochs):
            total = images = 0.0
            for step, (batch, logits) in enumerate(views(epoch)):
                done = epoch * steps + step
                cosine = (1 + math.cos(math.pi * done / (epochs * steps))) / 2
                for group in optimizer.param_groups:
                    group['lr'] = lr * min(1, (done + 1) / _WARMUP) * cosine
                optimizer.zero_grad()
                images_of_step, answers = batch.to(weight.device, weight.dtype), logits.to(weight.device)
                for piece, taught in zip(pieces(images_of_step), pieces(answers), strict=True):
                    x = piece.contiguous(memory_format=torch.channels_last)
                    taught = taught.float().log_softmax(dim=1)
                    loss = F.kl_div(
                        model.forward_at(x, index).float().log_softmax(dim=1), taught, reduction='sum', log_target=True)
                    (loss / len(batch)).backward()
                    total += float(loss.detach())
                if not math.isfinite(total):
                    raise ValueError('The loss is not finite: use a smaller lr.')
                optimizer.step()
                torch.clear_autocast_cache()  # a caller's autocast would go on with the weights of the first step
                images += len(batch)
            after_epoch(epoch + 1, total / max(images, 1), {'optimizer': optimizer.state_dict(), 'epoch': epoch + 1})
