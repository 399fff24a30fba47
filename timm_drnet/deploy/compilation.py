"""What torch.compile needs to know of routing: nothing of it belongs into a graph, every branch into one of its own.

Graphs are kept with the code object of a function, at most eight of them (``torch._dynamo.config.recompile_limit``),
and one branch needs several: for batches of any size, for a single image, for training. With all branches behind one
function they would push each other out, and torch would fall back to eager mode without an error. So each has a
function with code of its own. A view that is built anew for every call is no obstacle: graphs take parameters as inputs
and look only at the kind of the modules.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn

from ..core.norm import resize


@functools.cache
def branch_function(index: int) -> Callable[[nn.Module, torch.Tensor, int], torch.Tensor]:
    """The function that runs one branch, the same at every call and for every model.

    Args:
        index: The candidate.

    Returns:
        A function of the branch, images, (B, C, S, S), and the side to resize them to.
    """

    def run(branch: nn.Module, x: torch.Tensor, size: int) -> torch.Tensor:
        return branch(resize(x, size))  # type: ignore[no-any-return]  # modules are not typed

    run.__code__ = run.__code__.replace(co_name=f'branch_{index}')
    return run
