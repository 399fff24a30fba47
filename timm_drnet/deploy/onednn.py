"""Convolutions for x86 processors that add a residual and apply an activation before their result leaves the cache.

They call the operators of PyTorch's own that torch.compile calls on such processors. PyTorch has no public way to them
that needs no C++ compiler at hand.
"""

import operator
import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm import layers
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.jit import is_tracing  # type: ignore[attr-defined]

from .folding import drop_node, finish, plain_module
from .packing import PackedWeights

# Exact types, and what oneDNN calls them: name, scalars, algorithm.
_ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[str, list[float], str]]] = {
    nn.ReLU: lambda act: ('relu', [], ''),
    nn.LeakyReLU: lambda act: ('leaky_relu', [act.negative_slope], ''),
    nn.GELU: lambda act: ('gelu', [], act.approximate),
    layers.GELU: lambda act: ('gelu', [], 'none'),
    **dict.fromkeys((nn.Hardtanh, nn.ReLU6), lambda act: ('hardtanh', [act.min_val, act.max_val], '')),
    **dict.fromkeys((nn.SiLU, layers.Swish), lambda act: ('swish', [], '')),
    **dict.fromkeys((nn.Hardswish, layers.HardSwish), lambda act: ('hardswish', [], '')),
    **dict.fromkeys((nn.Sigmoid, layers.Sigmoid), lambda act: ('sigmoid', [], '')),
    **dict.fromkeys((nn.Hardsigmoid, layers.HardSigmoid), lambda act: ('hardsigmoid', [], '')),
}
_NO_ACTIVATION: tuple[str, list[float], str] = ('none', [], '')


class FusedConv(nn.Module):
    """A convolution, an optional summand, and an optional activation.

    Where oneDNN cannot run it, after a move to another device or data type, it runs as three operations.

    Args:
        conv: Of exact type Conv2d, with padding that `is_fusible`. Its parameters are shared.
        act: The activation, one of those that oneDNN has.
        packs: Whether it keeps its weights in oneDNN's order, too.
    """

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None, packs: bool = True) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.act = act
        assert not isinstance(conv.padding, str)
        self.geometry = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        self.post = _NO_ACTIVATION if act is None else _ACTIVATIONS[type(act)](act)
        self.packed = PackedWeights() if packs else None

    def forward(self, x: torch.Tensor, summand: torch.Tensor | None = None, inplace: bool = False) -> torch.Tensor:
        """Map x, (B, C, H, W), to (B, C', H', W'), the shape of the summand, which may be given up to the result."""
        # With a summand of one pixel, PyTorch 2.7's operator fails; nothing is to be gained there.
        if not self.runs_fused or is_tracing() or (summand is not None and summand.shape[2:].numel() == 1):
            return self._run_plainly(x, summand)
        mkldnn, weight = torch.ops.mkldnn, self.weight
        x = x.to(weight.dtype)  # autocast does not know these operators
        if self.packed is not None:
            x = x.contiguous(memory_format=torch.channels_last)
            weight = self.packed.find(weight, self.geometry, x)
        conv = (weight, self.bias, *self.geometry)
        if summand is None:
            return mkldnn._convolution_pointwise(x, *conv, *self.post)  # type: ignore[no-any-return]
        post = ('add', 1.0, None if self.act is None else self.post[0], *self.post[1:])
        if inplace:
            return mkldnn._convolution_pointwise_.binary(summand, x, *conv, *post)  # type: ignore[no-any-return]
        return mkldnn._convolution_pointwise.binary(  # type: ignore[no-any-return]
            x, summand.to(weight.dtype), *conv, *post)

    def _run_plainly(self, x: torch.Tensor, summand: torch.Tensor | None) -> torch.Tensor:
        padding, stride, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        y = y if summand is None else y.add_(summand)
        return y if self.act is None else self.act(y)

    @property
    def runs_fused(self) -> bool:
        """Whether oneDNN has these operators for the device and data type of the weight."""
        weight = self.weight
        return (
            weight.device.type == 'cpu'
            and torch.backends.mkldnn.is_available()
            and platform.machine().lower() in ('x86_64', 'amd64')
            and (weight.dtype == torch.float32
                 or (weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> 'FusedConv':
        if self.packed is not None:
            self.packed.clear()
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.packed is not None:
            self.packed.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        """Shape and geometry."""
        padding, stride, dilation, groups = self.geometry
        return f'{tuple(self.weight.shape)}, {padding=}, {stride=}, {dilation=}, {groups=}'


def fuse_convs(traced: fx.GraphModule, x: torch.Tensor, packs: bool = True) -> None:
    """Fuse each convolution of a graph, in place, with an addition right behind it and the activation behind that.

    Args:
        traced: What `fold_norms` returned.
        x: A batch of two or more images to find the shapes with, (B, C, S, S).
        packs: Whether each keeps its weights in oneDNN's order, too.
    """
    ShapeProp(traced).propagate(x)
    for node in list(traced.graph.nodes):
        conv = plain_module(traced, node)
        if not isinstance(conv, nn.Conv2d) or not _is_fusible(conv):
            continue
        summand = _summand(node)
        if summand is not None:
            drop_node(node.next, node)
            node.args = (*node.args, summand)
        act = _activation(traced, node, only_relu=summand is not None)
        if act is not None:
            drop_node(next(iter(node.users)), node)
        traced.add_submodule(node.target, FusedConv(conv, act, packs))
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        if _calls_fused(traced, node) and len(node.args) == 2 and _is_last_to_see(traced, node, order):
            node.args = (*node.args, True)
    finish(traced)


def _summand(node: fx.Node) -> fx.Node | None:
    """What the next operation adds to the result of a node that nothing else sees.

    It must be the next, so that nothing can change the summand, in place, in between.
    """
    add = node.next
    if add.op != 'call_function' or add.target not in (operator.add, operator.iadd, torch.add) or add.kwargs:
        return None
    others = [arg for arg in add.args if arg is not node]
    if len(node.users) != 1 or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    one, other = node.meta['tensor_meta'], others[0].meta.get('tensor_meta')
    same = isinstance(other, type(one)) and (one.shape, one.dtype) == (other.shape, other.dtype)
    return others[0] if same else None


def _calls_fused(traced: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == 'call_module' and isinstance(traced.get_submodule(str(node.target)), FusedConv)


def _is_last_to_see(traced: fx.GraphModule, node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether a fused convolution can write into its summand: no input of the model, and read by earlier ones only."""
    x, summand = node.args
    assert isinstance(summand, fx.Node)
    others = [user for user in summand.users if user is not node]
    return (
        x is not summand and _calls_fused(traced, summand)
        and all(_calls_fused(traced, user) and order[user] < order[node] for user in others))


def _activation(traced: fx.GraphModule, node: fx.Node, only_relu: bool) -> nn.Module | None:
    """The activation that is all that sees the result of a node."""
    users = list(node.users)
    act = plain_module(traced, users[0]) if len(users) == 1 else None
    return act if type(act) in ([nn.ReLU] if only_relu else _ACTIVATIONS) else None


def _is_fusible(conv: nn.Conv2d) -> bool:
    return type(conv) is nn.Conv2d and conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)
