"""The routing log: how many images took each resolution, told at the end of every training and evaluation run.

Training installs it on a model. timm's loop switches the model's mode where an epoch's training and its evaluation
begin, and asks for the state where the evaluation ends; all of it is seen from hooks, so that no loop has to be changed
for it. PyTorch has no hook for a switch of the mode, but hands it on to every child: the log is one without parameters.
"""

import logging
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import nn

from ..cost.flops import cost_table
from ..cost.verdict import COLLAPSED
from ..model import DRNet

_logger = logging.getLogger(__name__)

_TELLING = 100
"""Images from which on a share says something."""


class RoutingLog(nn.Module):
    """Counts of images per candidate since the last report.

    Args:
        resolutions: Side in pixels of each candidate, largest first.
        backbone_flops: C_j of each candidate.
        predictor_flops: FLOPs spent on each image by the predictor, 0 where it does not run.
    """

    def __init__(self, resolutions: Sequence[int], backbone_flops: Sequence[int], predictor_flops: int) -> None:
        super().__init__()
        self.resolutions = tuple(resolutions)
        self.backbone_flops = tuple(backbone_flops)
        self.predictor_flops = predictor_flops
        self.of_training = True
        """Whether the counts are those of training."""
        self.counts = [0] * len(resolutions)
        self.unread: torch.Tensor | None = None
        """Further counts, (M,), on the device: a training step must not wait for them."""
        self.images = 0
        self.expects_steps = False
        """Whether a task trains the model, so that an epoch without a step is a mistake."""
        self.stepped = True
        """Whether there was a step since an epoch began."""

    def __deepcopy__(self, memo: Any) -> 'RoutingLog':
        """The log of a copied model begins at zero."""
        log = RoutingLog(self.resolutions, self.backbone_flops, self.predictor_flops)
        log.training = self.training
        return log

    def train(self, mode: bool = True) -> Self:
        """Switch with the model between training, where a loop like timm's begins an epoch so, and evaluation."""
        if mode:
            self.stepped = False
        return super().train(mode)

    @torch.compiler.disable
    def after_forward(self, model: DRNet, args: Any, output: Any) -> None:
        """Forward hook: count a batch, after a report on the mode that has ended."""
        if model.training != self.of_training:
            self.report()
            self._begin(model.training)
        if isinstance(model.last_counts, torch.Tensor):
            self.unread = model.last_counts if self.unread is None else self.unread + model.last_counts
        else:
            self.counts = [a + b for a, b in zip(self.counts, model.last_counts, strict=True)]
        self.images += len(output)
        self.stepped |= model.training

    def before_state_dict(self, model: DRNet, prefix: str, keep_vars: bool) -> None:
        """State dict hook: asked for after an evaluation, as a script does to save it, a report is due.

        Raises:
            RuntimeError: If the epoch before the evaluation had no step, which timm's train.py tells as ``loss 0``.
        """
        if not model.training and not self.of_training:
            if self.images and self.expects_steps and not self.stepped:
                raise RuntimeError(
                    'An epoch of training had no step, so nothing was learned: the batch is larger than the training'
                    ' data, and timm leaves out a last batch that is not full. Use a batch size (train.py -b) of at'
                    ' most the number of training images, or of those of each process.')
            self.report()
            self._begin(training=False)

    def report(self) -> None:
        """Log the average FLOPs per image and the share of each resolution, on the first rank."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not self.images or (distributed and torch.distributed.get_rank() != 0):
            return
        counts = self.counts
        if self.unread is not None:
            counts = [a + int(b) for a, b in zip(counts, self.unread.tolist(), strict=True)]
        spent = sum(n * c for n, c in zip(counts, self.backbone_flops, strict=True)) / self.images
        average = spent + self.predictor_flops
        shares = ', '.join(
            f'{r} px: {n / self.images:.1%}' for r, n in zip(self.resolutions, counts, strict=True))
        _logger.info(
            f'DRNet {"training" if self.of_training else "evaluation"}: {average / 1e9:.4g} GFLOPs per image on average'
            f' ({average / self.backbone_flops[0]:.1%} of the backbone at {self.resolutions[0]} px),'
            f' {self.images} images, {shares}')
        most = max(counts)
        if self.of_training or not self.predictor_flops:
            return
        if self.images >= _TELLING and most > COLLAPSED * self.images:
            _logger.warning(
                f'DRNet: the predictor sends {most / self.images:.1%} of the images to'
                f' {self.resolutions[counts.index(most)]} px, as one static size would. Train with'
                " router='cascade', distill=1, which needs no predictor; or with joint_resolutions='all', which keeps"
                ' every resolution good, and set the average by timm-drnet budget.')

    def _begin(self, training: bool) -> None:
        self.of_training = training
        self.counts = [0] * len(self.resolutions)
        self.unread = None
        self.images = 0


def install_routing_log(model: DRNet) -> RoutingLog:
    """Log the routing of a model from now on.

    Args:
        model: A DRNet with weights.

    Returns:
        The log; that of an earlier call, if there was one.
    """
    for child in model.children():
        if isinstance(child, RoutingLog):
            return child
    rows = cost_table(model)
    predictor = rows[0].predictor_flops if model.args.uses_predictor else 0
    log = RoutingLog(model.resolutions, [row.backbone_flops for row in rows], predictor)
    log.training = model.training
    model.routing_log = log
    model.register_forward_hook(log.after_forward)
    model.register_state_dict_pre_hook(log.before_state_dict)  # type: ignore[no-untyped-call]
    return log


def expect_steps(model: DRNet) -> None:
    """Refuse the checkpoint of an epoch without a step from now on.

    Args:
        model: A DRNet that one of timm's tasks trains.
    """
    log = install_routing_log(model)
    log.expects_steps = log.stepped = True
