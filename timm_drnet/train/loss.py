"""The training losses of both stages, and the hook by which timm's tasks use them.

A task computes ``criterion(output, target)``; a hook on that task then adds what a DRNet's loss has beyond it, so that
loss scaling, gradient accumulation and logging see one honest scalar:

- pretrain stage: the criterion at every other candidate resolution (section 4.1);
- joint stage: the FLOPs loss (Eq. 7, 8);
- joint stage at all resolutions: all of that, and what the predictor learns from, the expected cross-entropy or the
  utility of each resolution (`utility.py`);
- either, where it is asked for: the ensemble of all resolutions as a teacher of each, and larger resolutions as
  teachers of smaller ones (`distillation.py`).
"""

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import SplitBatchNorm2d
from timm.task import ClassificationTask, MultiLabelClassificationTask, TrainingTask
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..cost.costs import Costs, measure_costs
from ..model import DRNet
from .distillation import ensemble_distillation, topdown_distillation
from .routing_log import expect_steps, install_routing_log
from .utility import utility_loss

_logger = logging.getLogger(__name__)

Criterion = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_COSTS: 'weakref.WeakKeyDictionary[DRNet, tuple[Costs, Any]]' = weakref.WeakKeyDictionary()
"""Of the models in training, measured when it began, as a step must not wait for them; and what they are for."""


def training_loss(
        model: nn.Module,
        criterion: Criterion,
        output: torch.Tensor,
        target: torch.Tensor,
) -> torch.Tensor:
    """The loss of a DRNet in training, for loops that are not built on timm's tasks.

    Train on several ranks with DistributedDataParallel. FSDP does not work: each rank draws resolutions of its own and
    runs the branches that it needs, while FSDP gathers weights from all ranks when a module runs.

    Args:
        model: The DRNet, or its DistributedDataParallel or compiled wrapper, in training mode.
        criterion: Classification loss of logits and targets.
        output: What ``model(input)`` has just returned, (B, num_classes).
        target: What the criterion takes.

    Returns:
        A scalar: the criterion summed over the resolutions that each image trains at, in the joint stage plus eta times
        the FLOPs loss.

    Raises:
        TypeError: If the model is not a DRNet.
        RuntimeError: If the model's last forward was not in training mode, or its loss was taken already.
        ValueError: If the model's wrapper would look for unused parameters where it cannot find them, or an argument of
            the model has no meaning in its stage.

    Examples:
        >>> import timm_drnet
        >>> model = timm_drnet.create_drnet('resnet10t', resolutions=(64, 48), num_classes=5, stage='pretrain').train()
        >>> images, target = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
        >>> loss = timm_drnet.training_loss(model, torch.nn.CrossEntropyLoss(), model(images), target)
        >>> loss.backward()
    """
    drnet = unwrap_model(model)
    if not isinstance(drnet, DRNet):
        raise TypeError(f'training_loss takes a DRNet, not {type(drnet).__name__}.')
    _check_arguments(drnet)
    _check_wrapper(drnet, model)
    return criterion(output, target) + _further_loss(drnet, criterion, target)  # Eq. 5 and what completes it to Eq. 8


def flops_loss(h: torch.Tensor, costs: Sequence[float], alpha: float) -> torch.Tensor:
    """The FLOPs constraint regularization, Eq. 6 and 7.

    The hinge looks at the average over the images of all ranks; the gradient is that of this rank's share, which
    DistributedDataParallel averages.

    Args:
        h: Straight-through choices, (B, M).
        costs: C_j of each candidate, in the units of alpha.
        alpha: Target average.

    Returns:
        L_reg, a scalar.
    """
    if max(costs) == min(costs):
        return 0 * h.sum()  # no choice changes what is spent
    shares = h.mean(dim=0)
    spent = sum((shares[j] * c for j, c in enumerate(costs)), torch.zeros_like(shares[0]))  # Eq. 6, E(F)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        everywhere = spent.detach().clone()
        torch.distributed.all_reduce(everywhere)
        spent = spent + (everywhere / torch.distributed.get_world_size() - spent.detach())
    return ((spent - alpha) / (max(costs) - min(costs))).clamp(min=0)  # Eq. 7


def expected_loss(p: torch.Tensor, logits: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """The cross-entropy that is to be expected of a choice, whatever it will be.

    Args:
        p: Probability of each candidate, (B, M).
        logits: At each candidate, (B, num_classes), M of them.
        target: Class indices, (B,), or probabilities, (B, num_classes). Fewer are taken for those of the first images,
            of which the others are augmented copies in the same order.

    Returns:
        A scalar.
    """
    return (p * candidate_losses(logits, target)).sum(dim=1).mean()


def candidate_losses(logits: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of every image at every candidate, (B, M); the arguments are those of `expected_loss`."""
    target = target if target.is_floating_point() else target.long()
    target = target.repeat(len(logits[0]) // len(target), *[1] * (target.ndim - 1))
    return torch.stack([F.cross_entropy(each.float(), target, reduction='none') for each in logits], dim=1)


def predictor_loss(
        model: DRNet,
        p: torch.Tensor,
        logits: Sequence[torch.Tensor],
        target: torch.Tensor,
        costs: Costs,
) -> torch.Tensor:
    """What a predictor learns from where every image is known at all resolutions, as the model's arguments say.

    Args:
        model: The DRNet.
        p: The predictor's probabilities, (B, M).
        logits: At each candidate, (B, num_classes), M of them, without a gradient.
        target: As of `expected_loss`.
        costs: Of the candidates, in the unit of the model's alpha.

    Returns:
        The expected or the utility loss, a scalar, without the FLOPs loss.
    """
    if model.args.predictor_loss == 'expected':
        return expected_loss(p, logits, target)
    losses = candidate_losses(logits, target)
    return utility_loss(p, losses, costs.backbone, model.args.alpha, model.args.tau)


def prepare_training(model: DRNet) -> None:
    """Install a model's routing log and, where its loss weighs what resolutions cost, measure that; once is enough.

    Every rank of a distributed training has to call it: where costs are measured times, the first rank's are for all.

    Args:
        model: A DRNet with weights, on the device that it trains on.
    """
    install_routing_log(model)
    alpha = model.args.alpha
    if alpha is None or not model.args.uses_predictor:
        return
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if model in _COSTS and _COSTS[model][1] == (distributed, model.args.cost, alpha):
        return
    if distributed:
        if torch.distributed.get_rank() == 0:
            measure_costs(model)
        agreed = [model.args.cost]
        torch.distributed.broadcast_object_list(agreed, src=0)
        model.args = replace(model.args, cost=agreed[0])
    costs = measure_costs(model)
    _COSTS[model] = (costs, (distributed, model.args.cost, alpha))
    low, high = min(costs.backbone), max(costs.backbone)
    if low == high:
        _logger.warning(
            f'alpha={alpha:g} has no effect, as every resolution costs {low:.4g} {costs.unit}: the FLOPs loss will'
            ' always be 0.')
    elif not low < alpha < high:
        _logger.warning(
            f'alpha={alpha:g} is no target between the costs of the resolutions, {low:.4g} to {high:.4g} {costs.unit}: '
            + ('the FLOPs loss will always be 0.' if alpha >= high else 'the FLOPs loss can never be 0.'))


def _further_loss(model: DRNet, criterion: Criterion, target: torch.Tensor) -> torch.Tensor:
    """What the loss of the last training step has beyond the criterion of the model's output."""
    step = model.take_step()
    prepare_training(model)
    further = torch.zeros((), device=next(model.parameters()).device)
    for logits in step.candidate_logits[1:]:  # the first is the model's output
        further = further + criterion(logits, target)
    if step.candidate_logits and model.args.distill:
        further = further + model.args.distill * ensemble_distillation(step.candidate_logits, criterion, target)
    if step.candidate_logits and model.args.distill_topdown:
        further = further + model.args.distill_topdown * topdown_distillation(step.candidate_logits)
    if step.h is None:
        return further
    costs = _COSTS[model][0] if model in _COSTS else Costs('', (), 0.0)  # without alpha nothing is weighed
    with torch.autocast(step.h.device.type, enabled=False):
        if step.candidate_logits:
            own = predictor_loss(model, step.h, [one.detach() for one in step.candidate_logits], target, costs)
            further = further + (own - own.detach())  # a gradient for the predictor alone
        if model.args.alpha is not None:
            further = further + model.args.eta * flops_loss(step.h, costs.backbone, model.args.alpha)  # Eq. 8
    return further


def _check_wrapper(model: DRNet, wrapper: nn.Module) -> None:
    """Refuse what would fail in the backward."""
    wrapper = getattr(wrapper, '_orig_mod', wrapper)  # torch.compile's own
    if model.args.trains_at_all and isinstance(wrapper, DistributedDataParallel) and wrapper.find_unused_parameters:
        raise ValueError(
            'Invalid find_unused_parameters=True: DistributedDataParallel looks for them behind the output, where it'
            ' cannot see the other resolutions that images train at. Use find_unused_parameters=False; every parameter'
            ' takes part in every step.')


def _check_task(task: TrainingTask, model: DRNet) -> None:
    """Refuse a task that cannot train a model."""
    args = model.args
    if args.trains_at_all and not isinstance(task, ClassificationTask):
        raise ValueError(
            f"Training at all resolutions sums a criterion over them, which {type(task).__name__} does not have: use"
            " timm's ClassificationTask, or stage='joint' with joint_resolutions='drawn'.")
    for name in ('distill', 'distill_topdown'):
        if getattr(args, name) and isinstance(task, MultiLabelClassificationTask):
            raise ValueError(
                f'Invalid {name}={getattr(args, name):g} for images with several labels: what is taught are'
                f' probabilities of one. Use {name}=0.')
    if args.trains_at_all and args.uses_predictor and isinstance(task, MultiLabelClassificationTask):
        raise ValueError(
            "Invalid joint_resolutions='all' for images with several labels: the predictor learns from a cross-entropy,"
            " which knows one. Use joint_resolutions='drawn'.")


def _check_arguments(model: DRNet) -> None:
    """Refuse arguments that would change nothing, or norms that cannot be trained so."""
    args = model.args
    for name in ('distill', 'distill_topdown'):
        if getattr(args, name) and not args.trains_at_all:
            raise ValueError(
                f"Invalid {name}={getattr(args, name):g} where an image trains at one resolution: use"
                f" stage='pretrain' or joint_resolutions='all', or {name}=0.")
    if not args.trains_at_all and any(isinstance(m, SplitBatchNorm2d) for m in model.backbone.modules()):
        raise ValueError(
            "Split norms (--split-bn) need the whole batch in its order, and images that draw a resolution come in"
            " parts: train without, or with stage='pretrain' or joint_resolutions='all'.")


def _complete_task_loss(task: TrainingTask, args: Any, kwargs: Any, result: dict[str, torch.Tensor]) -> None:
    """Forward hook of a task that trains a DRNet."""
    model = unwrap_model(task.get_trainable_module())
    if model.training:
        target = kwargs['target'] if 'target' in kwargs else args[1]
        further = _further_loss(model, getattr(task, 'criterion', _no_criterion), target)
        result['loss'] = result['loss'] + further
        result['drnet_loss'] = further.detach()


def _no_criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError  # only the pretrain stage calls it, for which a task without one is refused


def _watch_tasks(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Module registration hook: notice a timm task that takes a DRNet to train."""
    if not isinstance(module, TrainingTask) or name != 'trainable_module' or submodule is None:
        return
    model = unwrap_model(submodule)
    if not isinstance(model, DRNet):
        return
    _check_task(module, model)
    _check_arguments(model)
    _check_wrapper(model, submodule)
    prepare_training(model)
    expect_steps(model)
    if '_drnet_loss' not in module.__dict__:
        module.__dict__['_drnet_loss'] = module.register_forward_hook(_complete_task_loss, with_kwargs=True)


def install_task_hook() -> None:
    """Make timm's tasks train DRNets with the DRNet loss; called once, by importing the package."""
    nn.modules.module.register_module_module_registration_hook(_watch_tasks)
