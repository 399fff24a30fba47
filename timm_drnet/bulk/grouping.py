"""Grouping: every branch runs on full batches, whatever order the resolutions come in.

A batch as it comes holds a few images for each resolution, and a branch that runs on a few images wastes much of an
accelerator. So images wait for others of the same resolution. What still waits when the images end, at most one batch a
resolution, runs as it is.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import torch


class Routed(Protocol):
    """A DRNet, as it is or deployed."""

    resolutions: tuple[int, ...]
    num_classes: int

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choices, (B,) int64, of images, (B, C, S, S)."""

    def forward_at(self, x: torch.Tensor, choice: int) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S), at one candidate."""


@torch.inference_mode()
def classify_grouped(
        model: Routed,
        images: Iterable[torch.Tensor],
        batch_size: int,
        device: torch.device | str = 'cpu',
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classify images, each at the resolution predicted for it, in full batches of each resolution.

    Images are taken one by one, and no more than one batch for each resolution and one for the predictor are held at
    any time.

    Args:
        model: A DRNet in eval mode, or a deployed one.
        images: Images, (C, S, S) each; there is at least one.
        batch_size: Images that the predictor, or a branch, runs on at once.
        device: Where the model is.

    Returns:
        Choices, (N,) int64, and logits, (N, num_classes), of N images in their order, on the CPU.
    """
    waiting: list[list[tuple[int, torch.Tensor]]] = [[] for _ in model.resolutions]
    choices: list[int] = []
    places: list[int] = []
    outputs: list[torch.Tensor] = []

    def run(j: int, number: int) -> None:
        batch, waiting[j] = waiting[j][:number], waiting[j][number:]
        places.extend(place for place, _ in batch)
        x = torch.stack([image for _, image in batch]).to(device)
        outputs.append(model.forward_at(x, j).float().cpu())

    for group in batched(images, batch_size):
        chosen = model.predict_resolution(torch.stack(group).to(device)).tolist()
        for j, image in zip(chosen, group, strict=True):
            waiting[j].append((len(choices), image))
            choices.append(j)
            if len(waiting[j]) == batch_size:
                run(j, batch_size)
    for j, rest in enumerate(waiting):
        if rest:
            run(j, len(rest))

    logits = torch.empty(len(choices), outputs[0].shape[1])
    logits[torch.tensor(places)] = torch.cat(outputs)
    return torch.tensor(choices), logits


def batched(images: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Lists of ``size`` images; the last may have fewer."""
    iterator = iter(images)
    while group := list(islice(iterator, size)):
        yield group
