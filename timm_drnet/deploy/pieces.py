"""Pieces: how many images of a batch run at once.

On a processor, the activations of a large batch do not fit its caches, and those of each layer are new pages that the
system has to clear.
"""

import math
from functools import partial

import torch
from torch import nn

from ..core.drnet import DRNet
from .stopwatch import seconds_of

_PIECE = 8
"""Images at once where nothing was measured: in batches of 64 a ResNet-50 takes 1.5 times as long."""
_CUTS = (8, 16, 4, 32, 2)  # the first of those that are about equally fast is taken
_LONGEST_PIECE = 0.25  # seconds: what a piece costs however few its images are is far less, so larger ones gain nothing
ROUNDS = 3
"""How often what is compared by time takes turns: a disturbance hits all alike."""
_FEW = 4
_IN_A_ROW = 3  # the first piece after one of another size pays for memory that those after it find in place
_TIE = 0.05  # a difference that may be chance


def cut_up(x: torch.Tensor, cut: int, at_most: bool = True) -> tuple[torch.Tensor, ...]:
    """Cut a batch into pieces as equal as can be, so that none is a lone image: that one would take longest.

    Args:
        x: The batch, (B, ...).
        cut: Images in a piece, 0 for any number.
        at_most: Whether that is the most. Otherwise it is about that, up to a half more: ten images where eight run
            fastest are one piece, as two of five would take longer.

    Returns:
        The pieces.
    """
    if not cut:
        return (x,)
    return x.tensor_split(-(-len(x) // cut) if at_most else max(1, round(len(x) / cut)))


def pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A batch, (B, ...), cut into equal pieces on a processor, and whole on other devices."""
    return cut_up(x, _PIECE) if x.is_cpu and len(x) else (x,)


def forward_in_pieces(model: DRNet, x: torch.Tensor, index: int) -> torch.Tensor:
    """`DRNet.forward_at` in eval mode, where images do not depend on each other: logits, (B, num_classes).

    Args:
        model: A DRNet in eval mode.
        x: Images, (B, C, S, S), on its device.
        index: Of the resolution.
    """
    return torch.cat([model.forward_at(piece, index) for piece in pieces(x)])


def fastest_cut(module: nn.Module, image: torch.Tensor) -> int:
    """The number of images at which a module needs least time for each, or another that is about as good."""
    few = image.repeat(_FEW, 1, 1, 1)  # a single one takes longer than its share
    seconds_of(partial(module, few), few.device)  # the first run prepares what later ones find
    limit = _FEW * _LONGEST_PIECE / seconds_of(partial(module, few), few.device)
    seconds = {n: math.inf for n in _CUTS if n <= max(limit, _FEW)}
    for _ in range(ROUNDS):
        for n in seconds:
            images = image.repeat(n, 1, 1, 1)
            for _ in range(_IN_A_ROW):
                seconds[n] = min(seconds[n], seconds_of(partial(module, images), images.device) / n)
    return next(n for n in seconds if seconds[n] <= (1 + _TIE) * min(seconds.values()))


def random_images(channels: int, like: torch.Tensor, n: int, size: int) -> torch.Tensor:
    """Noise, (n, channels, size, size), always the same, on the device and in the type of another tensor."""
    generator = torch.Generator().manual_seed(0)  # the user's random numbers are not spent on it
    return torch.rand(n, channels, size, size, generator=generator).to(like.device, like.dtype)
