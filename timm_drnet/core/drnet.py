"""Dynamic Resolution Network: predict a resolution for each image, route, classify.

Paper: `Dynamic Resolution Network`, Zhu et al., NeurIPS 2021 - https://arxiv.org/abs/2106.02898
"""

import copy
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import get_model_traits
from torch import nn

from ..cost.budget import Budget, find_budget
from ..cost.flops import check_cost, cost_table, model_costs
from ..deploy.compilation import branch_function, never_compiled, not_compiled
from ..deploy.deployed import DeployedDRNet, deploy
from ..hub.checkpoints import load_mindspore
from ..train.routing_log import RoutingStatistics, log_routing
from .gumbel import gumbel_one_hot, one_hot
from .norm import ResolutionAwareNorm, branch_view, convert_norms, resize
from .predictor import PREDICTOR_SIZES, create_predictor
from .routing import ScriptedRouting, check_choices, check_images, route, route_static
from .timm_interface import TimmInterface

_logger = logging.getLogger(__name__)

STAGES = ('joint', 'pretrain')
JOINT_RESOLUTIONS = ('drawn', 'all')


@dataclass
class TrainingStep:
    """What a forward in training leaves behind for the loss."""

    candidate_logits: tuple[torch.Tensor, ...] = ()
    """Where an image trains at all resolutions: the logits at every candidate, (B, num_classes) each."""
    h: torch.Tensor | None = None
    """Joint stage: the straight-through choice, (B, M); the probabilities where an image trains at all resolutions."""


class DRNet(TimmInterface):
    """A CNN that picks the resolution of each image it classifies.

    Args:
        backbone: The large classifier, a timm model; its BatchNorms are replaced in place.
        resolutions: Candidate sides in pixels, largest first.
        predictor: Kind of resolution predictor, see `create_predictor`.
        predictor_size: Side in pixels at which the predictor sees the image. Default: 128, or 64 for the
            inverted-residual predictor.
        stage: ``joint`` trains backbone and predictor together; ``pretrain`` trains the backbone at all resolutions
            at once, with the predictor frozen and out of use.
        alpha: Target for the average cost of the backbone in GFLOPs, or in milliseconds if the cost is in them; None
            for no target.
        eta: Weight of the FLOPs loss.
        tau: Temperature of the Gumbel-softmax.
        resolution_aware_norm: Whether each resolution has norms of its own; False is the paper's ablation.
        cost: What resolutions are weighed by: ``flops``; ``latency``, measured on the model's device when first needed;
            or milliseconds measured elsewhere, of the backbone at each resolution and of the predictor.
        cost_weight: Position of the dial, see `set_budget`.
        joint_resolutions: At which resolutions the joint stage trains on an image. ``drawn`` is the paper's: the one
            that the predictor draws. ``all`` trains the backbone at every one, as the pretrain stage does, and the
            predictor on the expectation over its probabilities, without Gumbel noise: no resolution can fall behind
            because it is rarely drawn, for about twice the time.

    Raises:
        ValueError: If an argument is out of range, or the backbone has no BatchNorm.
    """

    def __init__(
            self,
            backbone: nn.Module,
            resolutions: Sequence[int] = (224, 168, 112),
            predictor: str = 'residual',
            predictor_size: int | None = None,
            stage: str = 'joint',
            alpha: float | None = None,
            eta: float = 0.2,
            tau: float = 1.0,
            resolution_aware_norm: bool = True,
            cost: str | Sequence[float] = 'flops',
            cost_weight: float = 0.0,
            joint_resolutions: str = 'drawn',
    ) -> None:
        super().__init__()
        self.resolutions = check_resolutions(resolutions)
        self.cost = check_cost(cost, len(self.resolutions))
        self.cost_weight = float(cost_weight)
        if stage not in STAGES:
            raise ValueError(f'Invalid stage {stage!r}: use one of {", ".join(map(repr, STAGES))}.')
        if joint_resolutions not in JOINT_RESOLUTIONS:
            raise ValueError(
                f'Invalid joint_resolutions {joint_resolutions!r}: use one of'
                f' {", ".join(map(repr, JOINT_RESOLUTIONS))}.')
        if alpha is not None and not alpha > 0:
            raise ValueError(
                f'Invalid alpha {alpha}: use the target average in GFLOPs (milliseconds with'
                ' cost="latency"), or None for no target.')
        if not eta >= 0:
            raise ValueError(f'Invalid eta {eta}: the weight of the FLOPs loss must not be negative.')
        if not math.isfinite(cost_weight):
            raise ValueError(f'Invalid cost_weight {cost_weight}: use a finite number, 0 for the choice as trained.')
        if not tau > 0:
            raise ValueError(f'Invalid tau {tau}: the temperature must be positive.')
        if predictor_size is not None and predictor_size < 32:
            raise ValueError(f'Invalid predictor_size {predictor_size}: use at least 32 pixels.')
        if convert_norms(backbone, len(self.resolutions) if resolution_aware_norm else 1) == 0:
            raise ValueError(
                f'The backbone {type(backbone).__name__} has no BatchNorm, so nothing in it can be made'
                ' resolution-aware. Use a CNN that is built on BatchNorm2d.')
        self.stage = stage
        self.alpha = alpha
        self.eta = eta
        self.tau = tau
        self.joint_resolutions = joint_resolutions
        self.resolution_aware_norm = resolution_aware_norm

        weight = next(backbone.parameters())
        self.backbone = backbone
        self.predictor = create_predictor(
            predictor, len(self.resolutions), in_chans=self.in_chans, device=weight.device, dtype=weight.dtype)
        self.predictor_size = predictor_size or PREDICTOR_SIZES[predictor]
        self.predictor.requires_grad_(stage == 'joint')

        self._traits = {'first_conv': self._first_convs()}  # what timm adapts to another number of channels
        self._statistics = RoutingStatistics(len(self.resolutions))
        self._compiled: dict[int, Callable[..., torch.Tensor]] = {}
        self._price: tuple[Any, torch.Tensor] | None = None
        self._step: TrainingStep | None = None
        self._warned = False

    def load_pretrained(self, checkpoint_path: str) -> None:
        """Load weights in a format that is not timm's: the authors' release, see `load_mindspore`."""
        load_mindspore(self, checkpoint_path)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the backbone's classifier.

        Args:
            num_classes: Number of logits; 0 for pooled embeddings.
            global_pool: Another pooling, or None to keep it.
        """
        super().reset_classifier(num_classes, global_pool)
        self._price = None  # another classifier costs other FLOPs

    def branch(self, index: int) -> nn.Module:
        """The backbone at one candidate resolution: a plain timm model that shares all weights.

        It does not resize; give it images of ``resolutions[index]``. Ask for it anew after changing the model.

        Args:
            index: The candidate.

        Returns:
            A module from (B, in_chans, r, r) to (B, num_classes).

        Raises:
            ValueError: If there is no such candidate.
        """
        return self._branch(self._check_index(index))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify each image at the resolution predicted for it.

        Args:
            x: Images, (B, in_chans, S, S), of any size S.

        Returns:
            Logits, (B, num_classes), or pooled embeddings without a classifier. In the pretrain stage those of the
            largest resolution.

        Raises:
            ValueError: If x is not a batch of square images.
        """
        if isinstance(x, torch.fx.Proxy):
            return self._forward_traced(x)
        if x.is_meta:  # shapes are all there is: nothing to predict from
            return self.branch(0)(x)  # type: ignore[no-any-return]
        check_images(x)
        if self.stage == 'pretrain':
            return self._forward_pretrain(x)
        if self.training and self.joint_resolutions == 'all':
            p = self._scores(x).float().softmax(dim=1)  # Eq. 1
            return self._train_at_all(x, one_hot(p).sum(dim=0).int().tolist(), p)
        h = self._predict(x)
        choice = h.argmax(dim=1)
        logits: torch.Tensor
        logits, counts = self._route(x, choice)
        self._statistics.add(counts, len(x))
        if self.training:
            self._leave_step(TrainingStep(h=h))
            # The factor is 1; its gradient is how the cross-entropy reaches the predictor (Eq. 4).
            factor = self._keep_idle_norms(h.gather(1, choice[:, None]), counts)
            logits = logits * factor.to(logits.dtype)
        return logits

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choose a candidate for each image: the most probable in eval mode, a Gumbel draw in training.

        Args:
            x: Images, (B, in_chans, S, S).

        Returns:
            Indices into ``resolutions``, (B,) int64; all 0 in the pretrain stage.

        Raises:
            ValueError: If x is not a batch of square images.
        """
        check_images(x)
        if self.stage == 'pretrain':
            return torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self._predict(x).argmax(dim=1)

    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        """Classify at given resolutions, without the predictor.

        Args:
            x: Images, (B, in_chans, S, S).
            choice: Index into ``resolutions`` for all images, or one for each, (B,) integers.

        Returns:
            Logits, (B, num_classes).

        Raises:
            ValueError: If x is not a batch of square images, or a choice is not a candidate.
        """
        check_images(x)
        if isinstance(choice, int):
            return self._run(self._check_index(choice), x)
        logits: torch.Tensor = self._route(x, check_choices(choice, len(x)))[0]
        return logits

    def predictor_scores(self, x: torch.Tensor) -> torch.Tensor:
        """What the predictor says, before the dial and without noise.

        Args:
            x: Images, (B, in_chans, S, S).

        Returns:
            Scores, (B, M); their softmax is p of Eq. 1.

        Raises:
            ValueError: If x is not a batch of square images.
        """
        check_images(x)
        return self._scores(x)

    def set_budget(
            self,
            target: float | None,
            batches: Iterable[torch.Tensor | Sequence[torch.Tensor]] = (),
    ) -> Budget | None:
        """Turn the dial: from now on, spend a given average on an image in evaluation.

        The choice becomes argmax(log p_j - w * C_j / C_max), with ``cost_weight`` w such that the average over the
        given images meets the target within 1 %. Nothing is trained, and training is not affected. The position goes
        where the model goes: to the Hub, to ``deploy()`` and into exports.

        Args:
            target: Average cost of an image, predictor included, in GFLOPs, or in milliseconds where the model's
                ``cost`` is in milliseconds. None for the choice as trained, w = 0.
            batches: Images like those to come, (B, C, S, S), some hundreds or more, without labels, or pairs of images
                and labels, (B,); with labels, the result says what the accuracy becomes.

        Returns:
            What the dial does on these images; None without a target.

        Raises:
            ValueError: If no position meets the target within 1 %, or there are no images. The model is as it was.
        """
        if target is None:
            self.cost_weight = 0.0
            return None
        budget = find_budget(self, target, batches)
        assert budget.chosen is not None
        self.cost_weight = budget.chosen.cost_weight
        return budget

    def priced_predictor(self) -> nn.Module:
        """The predictor with the dial inside, for what is made from the model: its argmax is the choice.

        What a candidate's score is lowered by is a constant, so it goes into the bias of the last layer.

        Returns:
            A module from (B, in_chans, s, s) to (B, M): the predictor itself where the dial is at 0, else a copy that
            shares all other weights.
        """
        if self.cost_weight == 0:
            return self.predictor
        classifier = self.predictor.get_classifier()  # type: ignore[operator]  # timm models are not typed
        shared = {id(t): t for t in (*self.predictor.parameters(), *self.predictor.buffers())}
        shared.pop(id(classifier.bias))
        priced = copy.deepcopy(self.predictor, shared)
        with torch.no_grad():
            priced.get_classifier().bias.sub_(self._current_price().to(classifier.bias.dtype))  # type: ignore[operator]
        return priced

    def deploy(self, micro_batch: int | None = None, share_weights: bool = False) -> DeployedDRNet:
        """Make an inference model with the same results, in less time and more memory.

        The norms of each branch are folded into convolutions of its own, and batches are cut into pieces that fit the
        processor's caches. The model itself does not change, and what is done to it later does not reach the other.

        Args:
            micro_batch: Images in a piece; 0 for batches that are not cut, or None to measure what is fastest on this
                device, which takes a few seconds.
            share_weights: Whether the branches share their convolutions and keep their norms, as scale and shift of
                each channel: this takes hardly more memory than the model, and more time.

        Returns:
            The inference model, with ``predict_resolution``, ``forward_at`` and ``branch``, on the same device.

        Raises:
            ValueError: If an argument is out of range, or the backbone cannot be traced by torch.fx.
            RuntimeError: If folding would change the results of the backbone.
        """
        return deploy(self, micro_batch, share_weights)

    def take_step(self) -> TrainingStep:
        """Hand over, once, what the last forward in training left for the loss.

        Raises:
            RuntimeError: If there was none.
        """
        step, self._step = self._step, None
        if step is None:
            raise RuntimeError(
                'There is no training step to complete: call the DRNet in training mode, then its loss once.')
        return step

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile predictor and branches in place; routing stays eager.

        ``torch.compile(model)`` does the same for ``model(x)`` alone.

        Args:
            *args: As for `torch.compile`.
            **kwargs: As for `torch.compile`.
        """
        self.predictor.compile(*args, **kwargs)
        self._compiled = {
            j: torch.compile(branch_function(j), *args, **kwargs) for j in range(len(self.resolutions))}

    def train(self, mode: bool = True) -> 'DRNet':
        """Set the mode, and log how the images of the mode that ends were routed."""
        self._log_statistics()
        return super().train(mode)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state; asked for after an evaluation, as a script does to save it, also logs the routing."""
        if not self.training:
            self._log_statistics()
        return super().state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: not the last step's graph, nor what was compiled for or counted by this model."""
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {
            **state, '_step': None, '_compiled': {}, '_price': None,
            '_statistics': RoutingStatistics(len(self.resolutions))}

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` sees."""
        return ScriptedRouting(
            self.priced_predictor(), [self.branch(j) for j in range(len(self.resolutions))],
            self.predictor_size, self.resolutions)

    def _first_convs(self) -> tuple[str, ...]:
        names = get_model_traits(self.backbone).get('first_conv') or ()
        stem = next(name for name, module in self.predictor.named_modules() if isinstance(module, nn.Conv2d))
        return (*(f'backbone.{n}' for n in ((names,) if isinstance(names, str) else names)), f'predictor.{stem}')

    def _predict(self, x: torch.Tensor) -> torch.Tensor:
        """One-hot choice, (B, M): Eq. 1, 2."""
        scores = self._scores(x)
        if self.training:
            return gumbel_one_hot(scores, self.tau)
        if self.cost_weight == 0:
            return one_hot(scores)
        # Scores are log p up to a summand that is the same for all candidates.
        return one_hot(scores.float() - self._current_price())

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        x = resize(x, self.predictor_size)
        weight = next(self.predictor.parameters())  # asked in place of x, which torch.fx knows nothing about
        if self.training and weight.is_cpu and torch.is_autocast_enabled('cpu'):
            # oneDNN takes fifty times as long for the backward of strided depthwise convolutions in bfloat16.
            with torch.autocast('cpu', enabled=False):
                return self.predictor(x.to(weight.dtype))  # type: ignore[no-any-return]  # modules are not typed
        return self.predictor(x)  # type: ignore[no-any-return]  # modules are not typed

    @never_compiled
    def _current_price(self) -> torch.Tensor:
        """w * C_j / C_max, (M,), by which the dial lowers each candidate's score."""
        weight = next(self.predictor.parameters())
        key = (self.cost_weight, self.cost, weight.device)
        if self._price is None or self._price[0] != key:  # made once, as to bring it to a device means to wait for it
            relative = model_costs(self).relative(torch.zeros((), device=weight.device))
            self._price = (self.cost_weight, self.cost, weight.device), self.cost_weight * relative
        return self._price[1]

    @never_compiled
    def _branch(self, index: int, guard_single_value: bool = False) -> nn.Module:
        return branch_view(self.backbone, index if self.resolution_aware_norm else 0, guard_single_value)

    @not_compiled
    def _run(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The images at one candidate resolution."""
        guard = self.training and len(x) == 1 and not self._norms_synchronize()
        run = self._compiled.get(index) or branch_function(index)
        return run(self._branch(index, guard), x, self.resolutions[index])

    @not_compiled
    def _route(self, x: torch.Tensor, choice: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        return route(x, choice, len(self.resolutions), self._run, on_all_ranks=self._norms_synchronize())

    def _forward_pretrain(self, x: torch.Tensor) -> torch.Tensor:
        """Every image at every resolution in training, at the largest in evaluation."""
        if not self.training:
            self._statistics.add([len(x)] + [0] * (len(self.resolutions) - 1), len(x))
            return self._run(0, x)
        return self._train_at_all(x, [len(x)] * len(self.resolutions))

    def _train_at_all(self, x: torch.Tensor, counts: Sequence[int], p: torch.Tensor | None = None) -> torch.Tensor:
        """Every image at every resolution; the logits of the largest."""
        candidates = tuple(self._run(j, x) for j in range(len(self.resolutions)))
        self._statistics.add(counts, len(x))
        self._leave_step(TrainingStep(candidate_logits=candidates, h=p))
        return candidates[0]

    def _forward_traced(self, x: Any) -> torch.Tensor:
        """The joint forward for torch.fx, which has to be shown where the views' containers stand in the model."""
        branches = [self.branch(j) for j in range(len(self.resolutions))]
        paths = x.tracer.submodule_paths
        for branch in branches:
            for name, module in branch.named_modules(prefix='backbone'):
                paths.setdefault(module, name)
        h = self._predict(x)
        logits = route_static(x, h.argmax(dim=1), branches, self.resolutions)
        return logits * h.amax(dim=1, keepdim=True) if self.training else logits

    def _keep_idle_norms(self, factor: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Give the norms of candidates that no image chose a gradient of zero, as distributed training needs.

        The sum is taken in float32: that of a large backbone's norms overflows in half precision.
        """
        idle = [
            p.flatten()
            for norm in self.backbone.modules() if isinstance(norm, ResolutionAwareNorm)
            for norm_j, count in zip(norm.norms, counts, strict=False) if count == 0
            for p in norm_j.parameters() if p.requires_grad
        ]
        return factor + 0 * torch.cat(idle).float().sum() if idle else factor

    def _norms_synchronize(self) -> bool:
        """Whether norms talk to other ranks, so that all ranks must run the same branches.

        A branch that has images nowhere must not run: its norms would take statistics of nothing.
        """
        return (
            self.training and _is_distributed()
            and any(isinstance(m, nn.SyncBatchNorm) for m in self.backbone.modules()))

    def _leave_step(self, step: TrainingStep) -> None:
        if self._step is not None and torch.is_grad_enabled() and not self._warned:
            self._warned = True
            _logger.warning(
                'This DRNet is trained without its loss: the resolutions are not weighed against their cost, and in'
                " the pretrain stage only the largest learns. Wrap it in timm.task.ClassificationTask, as timm's"
                ' train.py does, or use timm_drnet.training_loss(model, criterion, output, target).')
        self._step = step

    def _log_statistics(self) -> None:
        counts, images = self._statistics.take()
        first_rank = not _is_distributed() or torch.distributed.get_rank() == 0
        if images and first_rank and _logger.isEnabledFor(logging.INFO):
            table = cost_table(self)
            log_routing(
                'training' if self.training else 'evaluation', counts, images, self.resolutions,
                [row.backbone_flops for row in table],
                table[0].predictor_flops if self.stage == 'joint' else 0)

    def _check_index(self, index: int) -> int:
        if not 0 <= index < len(self.resolutions):
            raise ValueError(
                f'Invalid choice {index}: there are {len(self.resolutions)} candidates, counted from 0.')
        return index


def check_resolutions(resolutions: Sequence[int]) -> tuple[int, ...]:
    """Check candidate resolutions.

    Args:
        resolutions: Sides in pixels.

    Returns:
        The same as a tuple.

    Raises:
        ValueError: Unless they are different positive integers, largest first.
    """
    checked = tuple(int(r) for r in resolutions)
    if not checked or min(checked) < 1 or list(resolutions) != sorted(set(checked), reverse=True):
        raise ValueError(f'Invalid resolutions {resolutions}: use different sides in pixels, largest first.')
    return checked


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
