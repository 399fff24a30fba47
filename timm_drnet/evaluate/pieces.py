"""A DRNet in eval mode, piece by piece: as many images at once as a processor runs fastest."""

import torch

from ..core.drnet import DRNet
from ..deploy.pieces import cut_up

PIECE = 8
"""Images at once. The activations of more leave the caches, and those of each layer are new pages that the system has
to clear: in batches of 64 a ResNet-50 takes 1.5 times as long, and an EfficientNet-Lite0 twice."""


def pieces(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A batch, (B, ...), cut into equal pieces on a processor, and whole on other devices."""
    return cut_up(x, PIECE, at_most=True) if x.is_cpu and len(x) else (x,)


def forward_in_pieces(model: DRNet, x: torch.Tensor, index: int) -> torch.Tensor:
    """`DRNet.forward_at` in eval mode, where images do not depend on each other: logits, (B, num_classes).

    Args:
        model: A DRNet in eval mode.
        x: Images, (B, C, S, S), on its device.
        index: Of the resolution.
    """
    return torch.cat([model.forward_at(piece, index) for piece in pieces(x)])
