"""Dynamic Resolution Network: predict a resolution for each image, route, classify.

Paper: `Dynamic Resolution Network`, Zhu et al., NeurIPS 2021 - https://arxiv.org/abs/2106.02898
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .arguments import DRNetArgs
from .gumbel import gumbel_one_hot, one_hot
from .norm import ResolutionAwareNorm, branch_view, convert_norms, resize
from .predictor import create_predictor
from .routing import check_choices, check_images, check_index, eager, route
from .timm_interface import TimmInterface


@dataclass
class TrainingStep:
    """What a forward in training leaves behind for the loss."""

    candidate_logits: tuple[torch.Tensor, ...] = ()
    """Where an image trains at all resolutions: the logits at every candidate, (B, num_classes) each."""
    h: torch.Tensor | None = None
    """Joint stage: the straight-through choice, (B, M); the probabilities where an image trains at all resolutions."""


class DRNet(TimmInterface):
    """The paper's network: a backbone, a predictor, and what passes between them.

    Args:
        backbone: The large classifier, a timm model; its BatchNorms are replaced in place.
        **args: Of `DRNetArgs`.
    """

    def __init__(self, backbone: nn.Module, **args: Any) -> None:
        super().__init__()
        self.args = DRNetArgs(**args)
        """How this DRNet differs from others of its backbone."""
        if convert_norms(backbone, len(self.resolutions) if self.args.resolution_aware_norm else 1) == 0:
            raise ValueError(
                f'The backbone {type(backbone).__name__} has no BatchNorm, so nothing in it can be made'
                ' resolution-aware. Use a CNN that is built on BatchNorm2d.')
        weight = next(backbone.parameters())
        self.backbone = backbone
        self.predictor = None
        if self.args.router == 'predictor':
            self.predictor = create_predictor(
                self.args.predictor, len(self.resolutions), self.in_chans, device=weight.device, dtype=weight.dtype)
            self.predictor.requires_grad_(self.args.stage == 'joint')
        self.prices = (0.0,) * len(self.resolutions)
        """What the dial takes off the log-probability of each candidate in evaluation."""
        self.last_counts: list[int] | torch.Tensor = []
        """Images of the last forward at each candidate; an (M,) tensor where the model did not wait for it."""
        self._traits = {'first_conv': self._first_convs()}  # what timm adapts to another number of channels
        self._step: TrainingStep | None = None

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Candidate sides in pixels, largest first."""
        return self.args.resolutions

    def branch(self, index: int) -> nn.Module:
        """The backbone at one candidate resolution: a plain timm model that shares all weights.

        It maps (B, in_chans, r, r) to (B, num_classes) and does not resize: give it images of ``resolutions[index]``.
        Ask for it anew after changing the model. It raises a ValueError if there is no such candidate.
        """
        return self._branch(check_index(index, len(self.resolutions)))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify each image at the resolution predicted for it.

        Args:
            x: Images, (B, in_chans, S, S), of any size S.

        Returns:
            Logits, (B, num_classes), or pooled embeddings without a classifier.
        """
        h, choice = self._choose(x)  # Eq. 1 and 2: (B, M) one-hot, and where it is 1, (B,)
        logits = self._route(x, choice)  # Eq. 3: each image with the norms of its resolution
        if self.training:
            logits = self._weigh(logits, h, choice)  # Eq. 4
        return logits

    def forward_at_all(self, x: torch.Tensor) -> torch.Tensor:
        """Train every image at every resolution (section 4.1).

        Returns the logits of the largest resolution, (B, num_classes), and leaves the others for the loss.
        """
        candidates = tuple(self._run(j, x) for j in range(len(self.resolutions)))
        if self.args.stage == 'joint' and self.predictor is not None:
            p = self.predictor_scores(x).float().softmax(dim=1)  # Eq. 1
            self.last_counts = one_hot(p).sum(dim=0).long()
            self._leave_step(TrainingStep(candidates, p))
        else:
            self.last_counts = [len(x)] * len(candidates)
            self._leave_step(TrainingStep(candidates))
        return candidates[0]

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choose a candidate for each image: the most probable in eval mode, a Gumbel draw in training.

        Args:
            x: Images, (B, in_chans, S, S).

        Returns:
            Indices into ``resolutions``, (B,) int64; -1 where the predictor's scores are not finite.
        """
        check_images(x)
        return self._choose(x)[1]

    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Classify images, (B, in_chans, S, S), at given resolutions: logits, (B, num_classes).

        A choice is an index into ``resolutions`` for all images, or one for each, (B,) integers on any device.
        """
        check_images(x)
        if isinstance(choice, int):
            return self._run(check_index(choice, len(self.resolutions)), x)
        return self._route(x, check_choices(choice, x))

    def predictor_scores(self, x: torch.Tensor) -> torch.Tensor:
        """What the predictor says of images, (B, in_chans, S, S), before the dial and without noise: (B, M).

        The softmax of the scores is p of Eq. 1.
        """
        if self.predictor is None:
            raise RuntimeError('A cascade has no predictor: images stop where an answer is confident enough.')
        x = resize(x, self.args.predictor_size)
        weight = next(self.predictor.parameters())  # asked in place of x, which torch.fx knows nothing about
        lonely = self.training and not isinstance(x, torch.fx.Proxy) and len(x) == 1
        predictor = branch_view(self.predictor, 0, guard_single_value=True) if lonely else self.predictor
        if self.training and weight.is_cpu and torch.is_autocast_enabled('cpu'):
            # oneDNN takes fifty times as long for the backward of strided depthwise convolutions in bfloat16.
            with torch.autocast('cpu', enabled=False):
                return predictor(x.to(weight.dtype))  # type: ignore[no-any-return]  # modules are not typed
        return predictor(x)  # type: ignore[no-any-return]

    def take_step(self) -> TrainingStep:
        """Hand over, once, what the last forward in training left for the loss; a RuntimeError if there was none."""
        step, self._step = self._step, None
        if step is None:
            raise RuntimeError(
                'There is no training step to complete: call the DRNet in training mode, then its loss once.')
        return step

    def _choose(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One-hot choice, (B, M), and its index, (B,): Eq. 1, 2."""
        scores = self.predictor_scores(x)
        if self.training:
            h = gumbel_one_hot(scores, self.args.tau)
        elif any(self.prices):
            # Scores are log p up to a summand that is the same for all candidates.
            h = one_hot(torch.cat([scores.float()[:, j:j + 1] - p for j, p in enumerate(self.prices)], dim=1))
        else:
            h = one_hot(scores)
        return h, torch.where(scores.isfinite().all(dim=1), h.argmax(dim=1), -1)

    @torch.compiler.disable
    def _branch(self, index: int, guard_single_value: bool = False) -> nn.Module:
        return branch_view(self.backbone, index if self.args.resolution_aware_norm else 0, guard_single_value)

    @eager
    def _run(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """The images at one candidate resolution."""
        branch = self._branch(index, self.training and len(x) == 1 and not self._norms_synchronize())
        if len(x) == 0:
            # Norms gather the statistics of all ranks: in half precision here, they would not fit those of the others.
            with torch.autocast(x.device.type, enabled=False):
                x = x.to(next(self.backbone.parameters()).dtype)
                return branch(resize(x, self.resolutions[index]))  # type: ignore[no-any-return]
        return self._call(index, branch, x)

    def _call(self, index: int, branch: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return branch(resize(x, self.resolutions[index]))  # type: ignore[no-any-return]

    @eager
    def _route(self, x: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        everywhere = self._norms_synchronize()
        logits, self.last_counts = route(x, choice, len(self.resolutions), self._run, on_all_ranks=everywhere)
        return logits

    def _weigh(self, logits: torch.Tensor, h: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        """Logits times h_j, which is 1: its gradient is how the cross-entropy reaches the predictor (Eq. 4).

        The product is one of float32: in half precision the gradient of h would overflow.
        """
        self._leave_step(TrainingStep(h=h))
        factor = h.gather(1, choice[:, None]).view(-1, *[1] * (logits.ndim - 1)) + self._idle_norms()
        return (logits * factor).to(logits.dtype)

    @eager
    def _idle_norms(self) -> torch.Tensor | float:
        """Zero, from the norms of candidates that no image chose: distributed training needs a gradient for them.

        The sum is taken in float32: that of a large backbone's norms overflows in half precision.
        """
        idle = [
            p.flatten()
            for norm in self.backbone.modules() if isinstance(norm, ResolutionAwareNorm)
            for norm_j, count in zip(norm.norms, self.last_counts, strict=False) if count == 0
            for p in norm_j.parameters() if p.requires_grad
        ]
        return 0 * torch.cat(idle).float().sum() if idle else 0.0

    def _norms_synchronize(self) -> bool:
        """Whether norms talk to other ranks, so that all ranks must run the same branches.

        A branch that has images nowhere must not run: its norms would take statistics of nothing.
        """
        return (
            self.training and torch.distributed.is_available() and torch.distributed.is_initialized()
            and any(isinstance(m, nn.SyncBatchNorm) for m in self.backbone.modules()))

    def _leave_step(self, step: TrainingStep) -> None:
        self._step = step
