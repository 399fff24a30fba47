"""The norms of one candidate resolution: all of a smaller branch that adaptation may change."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.drnet import DRNet
from ..core.norm import ResolutionAwareNorm
from ..deploy.eval_mode import evaluating

State = list[dict[str, torch.Tensor]]
"""Parameters and buffers of each norm of a candidate."""


def private_norms(model: DRNet, index: int) -> list[nn.Module]:
    """The norms that a candidate has for itself.

    Args:
        model: A DRNet with norms for each resolution.
        index: Of the candidate.

    Returns:
        They are in the order of the backbone's modules.
    """
    return [m.norms[index] for m in model.backbone.modules() if isinstance(m, ResolutionAwareNorm)]


def get_state(norms: Sequence[nn.Module]) -> State:
    """A copy of all that norms hold."""
    return [copy.deepcopy(norm.state_dict()) for norm in norms]


def set_state(norms: Sequence[nn.Module], state: State) -> None:
    """Let norms hold what `get_state` copied."""
    for norm, values in zip(norms, state, strict=True):
        norm.load_state_dict(values)


@torch.no_grad()
def estimate_statistics(model: DRNet, index: int, batches: Iterable[torch.Tensor]) -> State:
    """Statistics of a candidate's norms on some images, each as the population of all of them has it.

    A batch has a mean and a variance; the variance of all images is that within the batches and that of their means
    (as in fvcore's ``precise_bn``). The model stays as it is.

    Args:
        model: A DRNet on the device to use.
        index: Of the candidate.
        batches: Images, (B, C, S, S), of one size each.

    Returns:
        The state of the norms with these statistics.

    Raises:
        ValueError: If there is no batch of two images or more.
    """
    norms = [norm for norm in private_norms(model, index) if isinstance(norm, _BatchNorm)]
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    momenta = [norm.momentum for norm in norms]
    weight = next(model.parameters())
    sums: list[tuple[torch.Tensor, torch.Tensor]] = []
    used = 0
    try:
        with evaluating(model):
            for norm in norms:
                norm.momentum = 1.0  # the running statistics are then those of the last batch
                norm.train()
            for x in batches:
                if len(x) < 2:
                    continue
                model.forward_at(x.to(weight.device, weight.dtype), index)
                moments = [(mean, var + mean ** 2) for mean, var in map(_statistics, norms)]
                sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, moments, strict=True)] if used else moments
                used += 1
    finally:
        for norm, state, momentum in zip(norms, before, momenta, strict=True):
            norm.load_state_dict(state)
            norm.momentum = momentum
    if not used:
        raise ValueError('Too few images: statistics need a batch of two or more.')
    found = get_state(private_norms(model, index))
    estimated = iter(sums)
    for module, values in zip(private_norms(model, index), found, strict=True):
        if isinstance(module, _BatchNorm):
            first, second = (total / used for total in next(estimated))
            values['running_mean'] = first.to(values['running_mean'])
            values['running_var'] = (second - first ** 2).to(values['running_var'])
    return found


def mix_statistics(source: State, new: State, part: float) -> State:
    """A state whose statistics are those of two, as of images of which a part is new."""
    mixed = []
    for old, other in zip(source, new, strict=True):
        values = dict(old)
        for name in ('running_mean', 'running_var'):
            if name in old:
                values[name] = torch.lerp(old[name], other[name], part)
        mixed.append(values)
    return mixed


@contextmanager
def only_trainable(model: DRNet, index: int) -> Iterator[list[nn.Parameter]]:
    """For a while, nothing in a model takes a gradient but the affine parameters of a candidate's norms."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = [parameter for norm in private_norms(model, index) for parameter in norm.parameters()]
    try:
        model.requires_grad_(False)
        for parameter in wanted:
            parameter.requires_grad_(True)
        yield wanted
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


def _statistics(norm: _BatchNorm) -> tuple[torch.Tensor, torch.Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.double(), norm.running_var.double()
