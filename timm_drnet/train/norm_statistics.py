"""Calibration: make a plain pretrained backbone usable at every resolution, without training it.

What a smaller image changes most in a trained CNN is the statistics that its norms were trained with. They can be
estimated again from some images, without labels and without a gradient, once for each resolution.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ..core.drnet import DRNet
from ..core.norm import ResolutionAwareNorm
from ..deploy.eval_mode import evaluating


@torch.no_grad()
def calibrate_norms(
        model: DRNet,
        batches: Iterable[torch.Tensor | Sequence[torch.Tensor]],
        keep: Sequence[int] = (),
) -> int:
    """Estimate the statistics of every resolution's norms anew, as `torch.optim.swa_utils.update_bn` does for one set.

    Each becomes the average over the batches of their means and variances. Dropout stays off and weights as they are.

    Args:
        model: A DRNet on the device to use, changed in place.
        batches: Images, (B, C, S, S), prepared as in training, some thousands if they are at hand; of pairs the first
            is taken. A last batch that is smaller than the first would count as much as it, and is left out.
        keep: Candidates whose statistics are good and stay.

    Returns:
        The number of images used.

    Raises:
        ValueError: If there are no images, too few of them, or all resolutions share their norms. The model is as it
            was.
    """
    if not model.args.resolution_aware_norm:
        raise ValueError(
            'All resolutions of the model share their norms, so the statistics of one would take the place of those of'
            ' the others: create it with resolution_aware_norm=True.')
    candidates = [j for j in range(len(model.resolutions)) if j not in keep]
    weight = next(model.parameters())
    size = images = used = 0
    with evaluating(model), _estimating(model, candidates) as norms:
        for batch in batches:
            x = batch if isinstance(batch, torch.Tensor) else batch[0]
            if len(x) < size:
                continue
            if len(x) < 2:
                raise ValueError('Invalid batches: one image at a time says little of a variance; use batches of 32.')
            size = max(size, len(x))
            images += len(x)
            used += 1
            for norm in norms:
                norm.momentum = 1 / used  # the plain average; momentum None would read a counter on the device
            x = x.to(weight.device, weight.dtype)
            for j in candidates:
                model.forward_at(x, j)
        if not images:
            raise ValueError('There are no images to calibrate on.')
    return images


@contextmanager
def _estimating(model: DRNet, candidates: Sequence[int]) -> Iterator[list[_BatchNorm]]:
    """The norms of some candidates, which collect statistics from nothing, in a model that is otherwise in eval mode.

    They have what they had if anything goes wrong.
    """
    norms = [
        norm_j for norm in model.backbone.modules() if isinstance(norm, ResolutionAwareNorm)
        for norm_j in (norm.norms[j] for j in candidates) if isinstance(norm_j, _BatchNorm)]
    before = [(norm.momentum, {k: v.clone() for k, v in norm.named_buffers()}) for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        yield norms
    except BaseException:
        for norm, (_, buffers) in zip(norms, before, strict=True):
            for name, value in norm.named_buffers():
                value.copy_(buffers[name])
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
