"""Routing: split a batch by choice, run each branch once on its part, put the results back in order."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

_Function = TypeVar('_Function', bound=Callable[..., Any])


def eager(function: _Function) -> _Function:
    """Keep a function out of torch.compile's graphs, while what it calls may be compiled."""
    return torch.compiler.disable(function, recursive=False)  # type: ignore[no-any-return]


@eager
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
        x: Images, (B, C, S, S), in any memory format, which the parts keep.
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
        raise ValueError(
            f'Invalid choice {invalid}: there are {num_resolutions} candidates, counted from 0.'
            + ' A router gives -1 where its scores are not finite, as those of damaged weights.' * (invalid == -1))
    order = torch.argsort(choice, stable=True)
    outputs = [
        run(j, x[index] if len(index) < len(x) else x)  # index_select would lose the memory format
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
    return torch.cat(outputs)[restore], counts


def _sum_over_ranks(counts: torch.Tensor) -> torch.Tensor:
    total = counts.clone()
    torch.distributed.all_reduce(total)
    return total


def check_images(x: torch.Tensor) -> None:
    """Refuse what is no batch of square images of floating point, (B, C, S, S), with a ValueError."""
    if x.ndim != 4 or 0 in x.shape or x.shape[2] != x.shape[3]:
        raise ValueError(
            f'Invalid input of shape {tuple(x.shape)}: use a batch of square images, (B, C, S, S), one at least;'
            ' crop or pad others.')
    if not x.is_floating_point():
        raise ValueError(f'Invalid input of type {x.dtype}: use normalized images of floating point.')


def check_choices(choice: Any, x: torch.Tensor) -> torch.Tensor:
    """Make one choice for each image of x an int64 tensor on its device; `route` sees whether they exist.

    Raises:
        ValueError: If it is no tensor, array or sequence of B integers.
    """
    try:
        choices = torch.as_tensor(choice, device=x.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f'Invalid choice {choice!r}: use one integer for each of the {len(x)} images.') from error
    if choices.shape != (len(x),) or choices.dtype.is_floating_point or choices.dtype in (torch.bool, torch.complex64):
        raise ValueError(
            f'Invalid choice of shape {tuple(choices.shape)} and type {choices.dtype}: use one integer for each of'
            f' the {len(x)} images.')
    return choices.long()


def check_index(index: int, num_resolutions: int) -> int:
    """Refuse what is no candidate, with a ValueError."""
    if not 0 <= index < num_resolutions:
        raise ValueError(f'Invalid choice {index}: there are {num_resolutions} candidates, counted from 0.')
    return index
