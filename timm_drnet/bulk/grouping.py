"""Grouping: every branch runs on full batches, whatever order the resolutions come in.

A batch as it comes holds a few images for each resolution, and a branch that runs on a few images wastes much of an
accelerator. So images wait for others of the same resolution, in a cascade those that go on for others that go on. What
still waits when the images end, at most one batch a resolution, runs as it is.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Protocol, TypeVar

import torch

from ..cascade.climb import confidence, rungs
from ..core.arguments import DRNetArgs

_Item = TypeVar('_Item')


class Routed(Protocol):
    """A DRNet, as it is or deployed."""

    resolutions: tuple[int, ...]
    num_classes: int
    args: DRNetArgs

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choices, (B,) int64, of images, (B, C, S, S); -1 where there is none, as the scores are not finite."""

    def forward_at(self, x: torch.Tensor, choice: int) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S), at one candidate."""


@torch.inference_mode()
def classify_grouped(
        model: Routed,
        images: Iterable[torch.Tensor],
        batch_size: int,
        device: torch.device | str = 'cpu',
        normalize: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classify images, each at the resolution predicted for it, in full batches of each resolution.

    Images are taken one by one, and no more than one batch for each resolution and one for the predictor are held at
    any time. In a cascade all begin at its smallest rung, and climb.

    Args:
        model: A DRNet in eval mode, or a deployed one.
        images: Images, (C, S, S) each; there is at least one.
        batch_size: Images that the predictor, or a branch, runs on at once.
        device: Where the model is.
        normalize: What makes images the model's input, once they are there; None if they are.

    Returns:
        Choices, (N,) int64, and logits, (N, num_classes), of N images in their order, on the CPU. Logits are NaN where
        the choice is -1.
    """
    climbs = model.args.router == 'cascade'
    ladder = rungs(model.args.thresholds)
    waiting: list[list[tuple[int, torch.Tensor]]] = [[] for _ in model.resolutions]
    choices: list[int] = []
    places: list[int] = []
    outputs: list[torch.Tensor] = []

    def load(group: list[torch.Tensor]) -> torch.Tensor:
        x = torch.stack(group)
        if torch.device(device).type == 'cuda':
            x = x.pin_memory()
        x = x.to(device, non_blocking=True)
        return x if normalize is None else normalize(x)

    def wait(j: int, place: int, image: torch.Tensor) -> None:
        waiting[j].append((place, image))
        if len(waiting[j]) == batch_size:
            run(j)

    def run(j: int) -> None:
        batch, waiting[j] = waiting[j], []
        logits = model.forward_at(load([image for _, image in batch]), j).float()
        threshold = model.args.thresholds[j - 1] if climbs and j else None
        stops = torch.ones(len(batch), dtype=torch.bool)
        if threshold is not None:
            stops = (confidence(logits) >= threshold).cpu()
        outputs.append(logits.cpu()[stops])
        places.extend(batch[n][0] for n in stops.nonzero()[:, 0].tolist())
        for n in (~stops).nonzero()[:, 0].tolist():
            place, image = batch[n]
            choices[place] = ladder[ladder.index(j) + 1]
            wait(choices[place], place, image)  # which may run the next rung

    for group in batched(images, batch_size):
        first = [ladder[0]] * len(group)
        if not climbs:
            first = model.predict_resolution(load(group)).tolist()
        for j, image in zip(first, group, strict=True):
            choices.append(j)
            if j >= 0:
                wait(j, len(choices) - 1, image)
    for j in reversed(range(len(waiting))):  # the smallest first, as images climb from there
        if waiting[j]:
            run(j)

    logits = torch.full((len(choices), model.num_classes), torch.nan)
    if outputs:
        logits[torch.tensor(places)] = torch.cat(outputs)
    return torch.tensor(choices), logits


def batched(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of ``size`` items; the last may have fewer."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
