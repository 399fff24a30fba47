"""Plain views: a module as it is in evaluation, with every weight an ordinary parameter.

Counting and folding look at a model without changing it. A pruned weight, or one with a parametrization, is computed
anew at each access, so it can be neither copied nor folded; a view holds what it is at the moment.
"""

from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from ..core.drnet import DRNet

_Module = TypeVar('_Module', bound=nn.Module)


def plain_view(module: _Module, made: dict[Any, Any] | None = None) -> _Module:
    """View a module in eval mode. It shares all parameters and buffers, has no hooks of pruning, and is not compiled.

    Args:
        module: Any module; neither its mode nor anything else in it changes.
        made: Filled with the views, by what they are views of: views made with the same one have in common what their
            modules have.

    Returns:
        Shallow copies of it and of all modules in it.
    """
    made = {} if made is None else made
    if module in made:
        return made[module]  # type: ignore[no-any-return]
    computed = _computed_weights(module)
    parametrized = parametrize.is_parametrized(module)
    kind = type(module).__bases__[0] if parametrized else type(module)  # each such module has a class of its own
    view: Any = object.__new__(kind)
    made[module] = view
    # Hooks may leave tensors with a history, such as a spectral norm's weight, which cannot be copied.
    vars(view).update((k, v.detach() if isinstance(v, torch.Tensor) else v) for k, v in vars(module).items())
    vars(view).update(
        training=False, _parameters=dict(module._parameters), _buffers=dict(module._buffers), _modules={})
    vars(view).pop('_compiled_call_impl', None)
    if isinstance(module, DRNet):
        vars(view)['_compiled'] = {}  # what model.compile() keeps for its branches
    for name, child in module._modules.items():
        if child is None or not (parametrized and name == 'parametrizations'):
            view._modules[name] = None if child is None else plain_view(child, made)
    if computed:
        vars(view)['_forward_pre_hooks'] = type(module._forward_pre_hooks)(
            (key, hook) for key, hook in module._forward_pre_hooks.items()
            if not isinstance(hook, prune.BasePruningMethod))
    for name, value in computed.items():
        vars(view).pop(name, None)
        view._parameters[name] = nn.Parameter(value, requires_grad=False)
        view._parameters.pop(f'{name}_orig', None)
        view._buffers.pop(f'{name}_mask', None)
    return view  # type: ignore[no-any-return]  # of the module's own type


@torch.no_grad()
def _computed_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """What pruning and parametrizations make of a module's own weights."""
    computed = {}
    if parametrize.is_parametrized(module):
        for name, compute in module.parametrizations.items():  # type: ignore[operator, union-attr]
            computed[name] = plain_view(compute)()  # in training a spectral norm would take a step of its own
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            computed[hook._tensor_name] = hook.apply_mask(module).detach()
    return computed
