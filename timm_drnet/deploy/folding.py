"""Folding: a copy of a model for inference whose norms have gone into the convolutions in front of them.

Which norm follows which convolution is read off the graph of the forward, not guessed from names or the order in which
modules were registered. A norm that cannot be folded stays, as one multiplication and addition per channel.
"""

import copy
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, DropBlock2d, DropPath, SyncBatchNormAct
from timm.models import get_notrace_functions, get_notrace_modules, reparameterize_model
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .plain_view import plain_view

# Exact types: a subclass may do with its weights what it likes.
_CONVS = (nn.Conv2d, Conv2dSame)
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d, SyncBatchNormAct)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d, DropPath, DropBlock2d)  # in evaluation


class ChannelAffine(nn.Module):
    """What a norm is in evaluation: a factor and a summand for each channel.

    Args:
        norm: A norm with running statistics.
        inplace: Whether to write the result into the input.
    """

    def __init__(self, norm: _BatchNorm, inplace: bool) -> None:
        super().__init__()
        assert norm.running_mean is not None  # checked before the copy
        scale, shift = _fold(torch.ones(norm.num_features, 1, 1), None, norm)  # into a convolution that does nothing
        self.scale = _frozen(scale, norm.running_mean)
        self.shift = _frozen(shift[:, None, None], norm.running_mean)
        self.inplace = inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift x, (B, C, H, W)."""
        return torch.addcmul(self.shift, x, self.scale, out=x if self.inplace else torch.empty_like(x))


def fold_norms(module: nn.Module, into_convs: bool = True, memo: dict[Any, Any] | None = None) -> fx.GraphModule:
    """Copy a module for inference, with every norm that directly follows a convolution folded into it.

    Blocks that timm can reparameterize, such as those of RepVGG, become single convolutions first. The module does not
    change, and the copy does not change with it.

    Args:
        module: A model from one tensor to one that torch.fx can trace, as it can timm's CNNs.
        into_convs: False leaves the convolutions as they are, and each norm behind them as a `ChannelAffine`.
        memo: As of `copy.deepcopy`. With the same one for all branches of a model, the copies have in common what the
            branches have.

    Returns:
        The copy in eval mode, without gradients. Every node of its graph calls a module under the node's own name.

    Raises:
        ValueError: If the module cannot be traced, or has a norm without running statistics.
    """
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is None:
            raise ValueError(
                f'The norm {name!r} has no running statistics: the result for an image depends on the others of its'
                ' batch. Use track_running_stats=True.')
    memo = {} if memo is None else memo
    copied = copy.deepcopy(plain_view(module, memo), memo)  # of both kinds of copies, and their keys differ
    if hasattr(copied, 'set_grad_checkpointing'):  # it is no part of inference, and fx cannot see through it
        copied.set_grad_checkpointing(False)  # type: ignore[operator]
    if into_convs:
        reparameterize_model(copied, inplace=True)
    traced = _trace(copied.eval().requires_grad_(False))
    for node in list(traced.graph.nodes):
        if type(plain_module(traced, node)) in _IDLE:
            drop_node(node, node.args[0])
    for node in list(traced.graph.nodes):
        norm = plain_module(traced, node)
        if isinstance(norm, _BatchNorm) and type(norm) in _NORMS:
            _replace_norm(traced, node, norm, into_convs)
    finish(traced)
    return traced.eval()


def plain_module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node of a graph calls with one argument, or None; None also if it has hooks of its own."""
    if not isinstance(node, fx.Node) or node.op != 'call_module' or len(node.args) != 1 or node.kwargs:
        return None
    module = traced.get_submodule(str(node.target))
    return None if module._forward_hooks or module._forward_pre_hooks else module


def drop_node(node: fx.Node, result: Any) -> None:
    """Take a node out of its graph, with another one's result in place of its own."""
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def finish(traced: fx.GraphModule) -> None:
    """Bring the code of a changed graph up to date, and remove the modules that it no longer calls.

    fx's own removal leaves what stands under a second name as well.
    """
    called = {node.target for node in traced.graph.nodes if node.op == 'call_module'}
    for name in [name for name in traced._modules if name not in called]:
        delattr(traced, name)
    traced.recompile()


class _Tracer(fx.Tracer):
    """Looks into modules that hold others. What holds none, or is a norm, is one node whatever it does inside."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (_BatchNorm, *get_notrace_modules())
        return not m._modules or isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)


class _OneInput(nn.Module):
    """A module without its optional arguments, which fx would take for inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)  # type: ignore[no-any-return]


def _trace(module: nn.Module) -> fx.GraphModule:
    """The graph of a module, in which every node calls a module, or gets a tensor, under the node's own name."""
    root = _OneInput(module)
    try:
        graph = _Tracer().trace(root)
    except Exception as error:  # of any type: it comes from the module's own code, given a stand-in for its input
        raise ValueError(
            f'The forward of {type(module).__name__} cannot be traced by torch.fx ({error}), so that its norms cannot'
            ' be folded. Use the model as it is, or hide what depends on values or sizes in a module that'
            ' timm.models.register_notrace_module marks.') from error
    named: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ('call_module', 'get_attr'):
            path, _, name = str(node.target).rpartition('.')
            node.target = node.name
            named[node.name] = getattr(root.get_submodule(path), name)
    return fx.GraphModule(named, graph, class_name=type(module).__name__)


def _replace_norm(traced: fx.GraphModule, node: fx.Node, norm: _BatchNorm, into_conv: bool) -> None:
    """Fold the norm of one node, or put a `ChannelAffine` in its place, with its activation behind it."""
    before = node.args[0]
    assert isinstance(before, fx.Node)  # nothing but a tensor goes into a norm
    conv = plain_module(traced, before)
    after_conv = type(conv) in _CONVS and len(before.users) == 1  # nobody else sees what the convolution gives
    last = node
    for part in (getattr(norm, 'drop', None), getattr(norm, 'act', None)):
        if part is not None and type(part) not in _IDLE:
            with traced.graph.inserting_after(last):
                following = traced.graph.create_node('call_module', 'act', name=f'{node.name}_act')
            following.target = following.name
            traced.add_submodule(following.name, part)
            last.replace_all_uses_with(following)
            following.args = (last,)
            last = following
    if after_conv and into_conv:
        assert isinstance(conv, nn.Conv2d)
        traced.add_submodule(str(before.target), _fold_into_conv(conv, norm))
        drop_node(node, before)
    else:
        traced.add_submodule(str(node.target), ChannelAffine(norm, inplace=after_conv))


def _fold_into_conv(conv: nn.Conv2d, norm: _BatchNorm) -> nn.Conv2d:
    """A convolution that also does what the norm behind it does."""
    folded = copy.deepcopy(conv)
    weight, bias = _fold(conv.weight, conv.bias, norm)
    folded.weight, folded.bias = _frozen(weight, conv.weight), _frozen(bias, conv.weight)
    return folded


def _fold(weight: torch.Tensor, bias: torch.Tensor | None, norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight, (C, ...), and bias, (C,), with a norm folded into them: in float64, which not every device has."""
    tensors = (weight, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    w, b, mean, var, factor, summand = (None if t is None else t.detach().cpu().double() for t in tensors)
    return fuse_conv_bn_weights(w, b, mean, var, norm.eps, factor, summand)  # type: ignore[arg-type]  # statistics exist


def _frozen(value: torch.Tensor, like: torch.Tensor) -> nn.Parameter:
    """A parameter on the device and in the type of another."""
    return nn.Parameter(value.detach().to(like.device, like.dtype), requires_grad=False)
