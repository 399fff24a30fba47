"""Resolution-aware normalization (section 3.1, Eq. 3) and the branches it splits a backbone into.

A resolution-aware norm owns one BatchNorm per candidate resolution and has no idea which one is in use: an index kept
in the module would be wrong under threads, and under gradient checkpointing, which runs the forward a second time
when the index has long moved on. The index lives in a *view* instead: a shallow copy of just those containers that
hold a resolution-aware norm, in which the norm is replaced by its j-th BatchNorm. All else is shared as the same
object, so a view is a plain timm model whose weights are the backbone's own.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class ResolutionAwareNorm(nn.Module):
    """One private BatchNorm, affine parameters and statistics, per candidate resolution.

    Args:
        norm: The BatchNorm to replace, which becomes the first of them; the others start as its copies.
        num_resolutions: Number of candidates.
    """

    def __init__(self, norm: nn.Module, num_resolutions: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm, *(copy.deepcopy(norm) for _ in range(num_resolutions - 1))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refuse to guess an index, with a RuntimeError."""
        raise RuntimeError(
            'A resolution-aware norm does not know which resolution it is used at.'
            ' Call model(x), model.forward_at(x, choice) or model.branch(j)(x) instead of the backbone itself.'
        )


class SingleValueNorm(nn.Module):
    """A BatchNorm in training that survives an input of one value per channel.

    The variance of a single value is no estimate, and torch refuses to compute it. Such an input is normalized with
    the running statistics, which it leaves alone; any other input takes the usual way.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize x, (B, C, ...)."""
        if x.numel() > x.shape[1]:
            return self.norm(x)  # type: ignore[no-any-return]  # modules are not typed
        frozen = _shallow_copy(self.norm)
        frozen.training = False
        return frozen(x)  # type: ignore[no-any-return]


def convert_norms(module: nn.Module, num_resolutions: int) -> int:
    """Replace every BatchNorm below a module, in place, by a resolution-aware norm, and count those replaced.

    Subclasses such as timm's BatchNormAct2d and SyncBatchNorm keep their type and activation. A BatchNorm that stands
    in two places stays one resolution-aware norm in both.
    """
    converted: dict[nn.Module, ResolutionAwareNorm] = {}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # named_children() would skip a second name of the same child
            if isinstance(child, _BatchNorm):
                if child not in converted:
                    converted[child] = ResolutionAwareNorm(child, num_resolutions)
                setattr(parent, name, converted[child])
    return len(converted)


def branch_view(module: nn.Module, index: int, guard_single_value: bool = False) -> nn.Module:
    """The module as it is at one candidate resolution, sharing all weights.

    Views are cheap, as no weight is copied, and are built when needed: one that is never kept can never be stale after
    ``reset_classifier``, ``convert_sync_batchnorm``, ``train()`` or any other change to the module, which is returned
    itself if it holds nothing to replace. With ``guard_single_value`` the norms take a single value in training.
    """
    if isinstance(module, ResolutionAwareNorm):
        module = module.norms[index]
    if isinstance(module, _BatchNorm):
        return SingleValueNorm(module) if guard_single_value and module.training else module
    view = module
    for name, child in module._modules.items():
        if child is None:
            continue
        child_view = branch_view(child, index, guard_single_value)
        if child_view is not child:
            if view is module:
                view = _shallow_copy(module)
            view._modules[name] = child_view
    return view


def resize(x: torch.Tensor, size: int) -> torch.Tensor:
    """Resize images, (B, C, S, S), to (B, C, size, size), if they differ: bilinearly, without antialiasing."""
    if not isinstance(x, torch.fx.Proxy) and x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode='bilinear', align_corners=False)


def _shallow_copy(module: nn.Module) -> nn.Module:
    """A module with children of its own choosing that shares parameters, buffers, hooks and attributes."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__['_modules'] = dict(module._modules)
    return twin
