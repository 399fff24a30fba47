"""Evaluation for a while: a model in eval mode, and afterwards exactly as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode for the duration of a ``with`` block, also one that an error ends.

    ``model.train(was_training)`` would not do: it forgets that parts of the model, such as frozen norms, were in
    another mode than the model itself.

    Args:
        model: Any module; each module in it gets its own mode back.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
