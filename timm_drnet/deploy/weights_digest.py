"""Which weights a model has, as a hash that is the same on every device and by any number of threads."""

import hashlib

import torch
from torch import nn


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers, with their names, types and shapes.

    Args:
        model: Any module with weights.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
