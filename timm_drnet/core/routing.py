"""Routing: split a batch by choice, run each branch once on its part, put the results back in order."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..deploy.compilation import not_compiled
from .norm import resize


@not_compiled
def route(
        x: torch.Tensor,
        choice: torch.Tensor,
        num_resolutions: int,
        run: Callable[[int, torch.Tensor], torch.Tensor],
        on_all_ranks: bool = False,
) -> tuple[torch.Tensor, list[int]]:
    """Run every image at its chosen resolution.

    The one wait for the device is reading how many images chose each candidate.

    Args:
        x: Images, (B, C, S, S).
        choice: Index of the candidate of each image, (B,) integers.
        num_resolutions: Number of candidates, M.
        run: Called with a candidate and its images, once per candidate; returns (images, ...).
        on_all_ranks: Whether to call ``run``, with no images if need be, also for candidates that only another rank has
            chosen: branches that wait for each other must run on every rank or on none.

    Returns:
        The results in the order of the images, (B, ...), and the number of images of each candidate.

    Raises:
        ValueError: If a choice is not a candidate, or the results differ in shape.
    """
    candidates = torch.arange(num_resolutions, device=choice.device)
    chosen = (choice[:, None] == candidates).sum(dim=0)
    chosen_anywhere = _sum_over_ranks(chosen) if on_all_ranks else chosen
    counts, wanted = torch.stack((chosen, chosen_anywhere)).tolist()  # the wait; bincount would add two
    if sum(counts) < len(x):
        invalid = int(choice[(choice < 0) | (choice >= num_resolutions)][0])
        raise ValueError(f'Invalid choice {invalid}: there are {num_resolutions} candidates, counted from 0.')
    order = torch.argsort(choice, stable=True)
    outputs = [
        run(j, x.index_select(0, index) if len(index) < len(x) else x)
        for j, index in enumerate(order.split(counts))
        if wanted[j]
    ]
    if len(outputs) == 1:
        return outputs[0], counts
    if len({output.shape[1:] for output in outputs}) > 1:
        raise ValueError(
            'The outputs of different resolutions have different shapes and cannot form one batch: without global'
            " pooling use model.forward_features(x), or restore pooling with model.reset_classifier(n, 'avg').")
    restore = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return torch.cat(outputs).index_select(0, restore), counts


def _sum_over_ranks(counts: torch.Tensor) -> torch.Tensor:
    total = counts.clone()
    torch.distributed.all_reduce(total)
    return total


def route_static(
        x: torch.Tensor,
        choice: torch.Tensor,
        branches: Sequence[nn.Module],
        resolutions: Sequence[int],
) -> torch.Tensor:
    """`route` without control flow that depends on the data, for torch.fx: every branch runs, empty ones too."""
    outputs, order = [], []
    for j, branch in enumerate(branches):
        index = (choice == j).nonzero().flatten()
        outputs.append(branch(resize(x.index_select(0, index), resolutions[j])))
        order.append(index)
    return torch.cat(outputs).index_select(0, torch.cat(order).argsort())


class ScriptedRouting(nn.Module):
    """A DRNet for ``torch.jit.script``: inference only, plain branches, routing in TorchScript's own control flow."""

    def __init__(
            self,
            predictor: nn.Module,
            branches: Sequence[nn.Module],
            predictor_size: int,
            resolutions: Sequence[int],
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.branches = nn.ModuleList(branches)
        self.predictor_size = predictor_size
        self.resolutions = list(resolutions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S)."""
        choice = self.predictor(_scriptable_resize(x, self.predictor_size)).argmax(dim=1)
        outputs: list[torch.Tensor] = []
        order: list[torch.Tensor] = []
        for j, branch in enumerate(self.branches):
            index = (choice == j).nonzero().flatten()
            if index.numel() > 0:
                outputs.append(branch(_scriptable_resize(x.index_select(0, index), self.resolutions[j])))
                order.append(index)
        return torch.cat(outputs).index_select(0, torch.cat(order).argsort())


def _scriptable_resize(x: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(x, size=[size, size], mode='bilinear', align_corners=False)


def check_images(x: torch.Tensor) -> None:
    """Refuse what is no batch of square images, (B, C, S, S).

    Raises:
        ValueError: If it is none.
    """
    if x.ndim != 4 or x.shape[0] == 0 or x.shape[2] != x.shape[3]:
        raise ValueError(
            f'Invalid input of shape {tuple(x.shape)}: use a batch of square images, (B, C, S, S); crop or pad others.')


def check_choices(choice: torch.Tensor, images: int) -> torch.Tensor:
    """Refuse what is no choice for each of a number of images, (B,) integers; `route` sees whether they exist.

    Returns:
        The same as int64.

    Raises:
        ValueError: If it is none.
    """
    if choice.shape != (images,) or choice.is_floating_point() or choice.is_complex():
        raise ValueError(
            f'Invalid choice of shape {tuple(choice.shape)} and type {choice.dtype}: use one integer for each of'
            f' the {images} images.')
    return choice.long()
