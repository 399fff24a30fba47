"""The DRNet that users hold: the paper's network, with what timm, compilers and deployment ask of it."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import core
from .cascade.climb import climb
from .core.arguments import DRNetArgs
from .core.drnet import TrainingStep
from .core.routing import check_images, eager
from .cost.costs import set_cost_weight
from .deploy.compilation import branch_function
from .deploy.deployed import DeployedDRNet
from .deploy.deployment import deploy
from .deploy.graph_capture import refuse_tracing, scriptable, traced_forward
from .evaluate.budgets import Budget, set_budget

_logger = logging.getLogger(__name__)

_ARGS = {field.name for field in dataclasses.fields(DRNetArgs)} - {'predictor'}  # which is the module, too


class DRNet(core.drnet.DRNet):
    """A CNN that picks the resolution of each image it classifies.

    Args:
        backbone: The large classifier, a timm model; its BatchNorms are replaced in place.
        **args: Of `DRNetArgs`: ``resolutions``, ``stage``, ``alpha`` and others. With a ``cost_weight``, the model's
            costs are measured at once, on the device of the backbone.

    Raises:
        TypeError: If there is no such argument.
        ValueError: If an argument is out of range, or the backbone has no BatchNorm.
    """

    def __init__(self, backbone: nn.Module, **args: Any) -> None:
        super().__init__(backbone, **args)
        self._compiled: dict[int, Callable[..., torch.Tensor]] = {}
        self._warned = False
        if self.args.cost_weight:
            set_cost_weight(self, self.args.cost_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify each image at the resolution predicted for it.

        Args:
            x: Images, (B, in_chans, S, S), of any size S.

        Returns:
            Logits, (B, num_classes), or pooled embeddings without a classifier. In the pretrain stage those of the
            largest resolution.

        Raises:
            RuntimeError: Under ``torch.jit.trace``, which cannot follow the routing.
            ValueError: If x is not a batch of square images, or the predictor's scores are not finite.
        """
        refuse_tracing()
        if isinstance(x, torch.fx.Proxy):
            return traced_forward(self, x)
        if x.is_meta:  # shapes are all there is: nothing to predict from
            return self.branch(0)(x)  # type: ignore[no-any-return]
        check_images(x)
        if self.training and (self.args.trains_at_all or self._statistics_are_estimated()):
            return self.forward_at_all(x)
        return super().forward(x) if self.args.uses_predictor else self.classify(x)[0]

    def classify(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify each image, and say at which resolution, in one go.

        Args:
            x: Images, (B, in_chans, S, S), of any size S.

        Returns:
            Logits, (B, num_classes), and indices into ``resolutions``, (B,) int64.

        Raises:
            ValueError: If x is not a batch of square images, or the predictor's scores are not finite.

        Examples:
            >>> import timm, timm_drnet
            >>> model = timm.create_model(timm_drnet.DEFAULT_MODEL, pretrained=True).eval()
            >>> logits, choice = model.classify(torch.zeros(1, 3, 224, 224))
            >>> [model.resolutions[j] for j in choice]  # grey says nothing, so it goes on to the largest
            [224]
        """
        if self.args.router == 'cascade' and self.num_classes:
            check_images(x)
            return self._climb(x)
        choice = self.predict_resolution(x)
        return self._route(x, choice), choice

    def predictor_scores(self, x: torch.Tensor) -> torch.Tensor:
        """What the predictor says of images, (B, in_chans, S, S), before the dial and without noise: (B, M).

        The softmax of the scores is p of Eq. 1.

        Raises:
            RuntimeError: If the model is a cascade.
        """
        return super().predictor_scores(x).clone()  # as the result of a branch

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choose a candidate for each image: the most probable in eval mode, a Gumbel draw in training.

        Args:
            x: Images, (B, in_chans, S, S).

        Returns:
            Indices into ``resolutions``, (B,) int64; where it stopped in a cascade, all 0 in one without a classifier,
            whose answers have no confidence, and in the pretrain stage; -1 where a predictor's scores are not finite.

        Raises:
            ValueError: If x is not a batch of square images.
        """
        if self.args.uses_predictor:
            return super().predict_resolution(x)
        if self.args.router == 'cascade' and self.num_classes:
            return self.classify(x)[1]
        check_images(x)
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the backbone's classifier; the dial keeps its position, at the new costs.

        Args:
            num_classes: Number of logits; 0 for pooled embeddings.
            global_pool: Another pooling, or None to keep it.
        """
        super().reset_classifier(num_classes, global_pool)
        if self.args.cost_weight:
            set_cost_weight(self, self.args.cost_weight)

    def set_budget(
            self,
            target: float | None,
            batches: Iterable[torch.Tensor | Sequence[torch.Tensor]] = (),
    ) -> Budget | None:
        """Spend a given average on an image in evaluation, see `timm_drnet.evaluate.budgets.set_budget`.

        Args:
            target: Average cost of an image, predictor included, in GFLOPs or the unit of the model's ``cost``. None
                for the choice as trained.
            batches: Images like those to come, (B, C, S, S), without labels, or pairs of images and labels, (B,).

        Returns:
            What the dial does on these images; None without a target.

        Raises:
            ValueError: If no position meets the target within 1 %, or there are no images. The model is as it was.

        Examples:
            >>> import timm_drnet
            >>> model = timm_drnet.create_drnet('resnet10t', resolutions=(64, 48), router='cascade').eval()
            >>> full = timm_drnet.cost_table(model)[0].backbone_flops / 1e9
            >>> budget = model.set_budget(0.8 * full, [torch.randn(100, 3, 64, 64)])
            >>> round(budget.chosen.cost / full, 2)
            0.8
        """
        return set_budget(self, target, batches)

    def deploy(
            self,
            micro_batch: int | None = None,
            share_weights: bool = False,
            dtype: torch.dtype | None = None,
    ) -> DeployedDRNet:
        """Make an inference model with the same results, in less time and more memory.

        The norms of each branch are folded into convolutions of its own, and batches are cut into pieces that fit the
        processor's caches. The model itself does not change, and what is done to it later does not reach the other.

        Args:
            micro_batch: The most images in a piece; 0 for batches that are not cut, or None to measure what is fastest
                on this device, which takes a few seconds.
            share_weights: Whether the branches share their convolutions and keep their norms, as scale and shift of
                each channel: this takes hardly more memory than the model, and more time. Otherwise each has its
                own, twice: on a processor, oneDNN keeps them in an order of its own as well.
            dtype: To compute in, such as ``torch.bfloat16``, twice as fast on processors that have it; images and
                logits keep their own. None for that of the model.

        Returns:
            The inference model, with ``predict_resolution``, ``forward_at`` and ``branch``, on the same device.

        Raises:
            ValueError: If an argument is out of range, or the backbone cannot be traced by torch.fx.
            RuntimeError: If folding would change the results of the backbone.
        """
        return deploy(self, micro_batch, share_weights, dtype)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile predictor and branches in place; routing stays eager.

        ``torch.compile(model)`` does the same for ``model(x)`` alone.

        Args:
            *args: As for `torch.compile`.
            **kwargs: As for `torch.compile`.
        """
        if self.predictor is not None:
            self.predictor.compile(*args, **kwargs)
        self._compiled = {
            j: torch.compile(branch_function(j), *args, **kwargs) for j in range(len(self.resolutions))}

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would change nothing.

        Raises:
            AttributeError: If the name is that of an argument, which belongs to ``model.args``.
        """
        if name in _ARGS:
            raise AttributeError(
                f'{name} is one of model.args, which is replaced as a whole: model.args ='
                f' dataclasses.replace(model.args, {name}=...); for the dial, use model.set_budget.')
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: not the last step's graph, nor what was compiled for this model."""
        return {**super().__getstate__(), '_step': None, '_compiled': {}}  # type: ignore[no-untyped-call]

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` sees."""
        return scriptable(self)

    @eager
    def _climb(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, choice, self.last_counts = climb(x, self.args.thresholds, self._run)
        return logits, choice

    @eager
    def _call(self, index: int, branch: nn.Module, x: torch.Tensor) -> torch.Tensor:
        run = self._compiled.get(index) or branch_function(index)
        return run(branch, x, self.resolutions[index]).clone()  # a CUDA graph's result lives until the next one runs

    def _statistics_are_estimated(self) -> bool:
        """Whether `torch.optim.swa_utils.update_bn` calls, which has reset all norms: none may go without images."""
        if torch.is_grad_enabled() or not self.args.resolution_aware_norm:
            return False
        return next(m.momentum for m in self.backbone.modules() if isinstance(m, _BatchNorm)) is None

    def _leave_step(self, step: TrainingStep) -> None:
        left = self._step or TrainingStep()
        if any(t.requires_grad for t in (*left.candidate_logits, left.h) if t is not None) and not self._warned:
            self._warned = True
            _logger.warning(
                'This DRNet is trained without its loss: the resolutions are not weighed against their cost, and in'
                " the pretrain stage only the largest learns. Wrap it in timm.task.ClassificationTask, as timm's"
                ' train.py does, or use timm_drnet.training_loss(model, criterion, output, target).')
        super()._leave_step(step)
