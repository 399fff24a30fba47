"""Making a DRNet ready for inference: its branches folded, and compared with what they were."""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import nn

from ..core.drnet import DRNet
from .deployed import DeployedDRNet
from .folding import fold_norms
from .onednn import fuse_convs
from .pieces import random_images
from .plain_view import plain_view
from .priced_predictor import priced_predictor


@torch.no_grad()
def deploy(
        model: DRNet,
        micro_batch: int | None = None,
        share_weights: bool = False,
        dtype: torch.dtype | None = None,
) -> DeployedDRNet:
    """Make the inference model of a DRNet; see `timm_drnet.DRNet.deploy`."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f'Invalid dtype {dtype}: use torch.bfloat16, another type of floating point, or None.')
    if micro_batch is not None and (type(micro_batch) is not int or micro_batch < 0):
        raise ValueError(
            f'Invalid micro_batch {micro_batch}: use a number of images, 0 for any number, or None to measure it.')
    if any(p.is_meta for p in model.parameters()):
        raise ValueError('The model is on the meta device: give it weights before it is deployed.')
    weight = next(model.parameters())
    with torch.autocast(weight.device.type, enabled=False), torch.autocast('cpu', enabled=False):
        # In half precision, or in TensorFloat-32 on a card, nothing could be told from a comparison.
        deployed = _fold(_exact(model), share_weights)
        deployed.to(weight.device, dtype or weight.dtype)
        if micro_batch is None:
            deployed.calibrate()
        else:
            deployed.micro_batch = (micro_batch,) * len(model.resolutions)
            deployed.predictor_micro_batch = micro_batch
    return deployed


def _exact(model: DRNet) -> DRNet:
    """A view of a model, or a copy, that computes on the processor and at least in float32."""
    weight, view = next(model.parameters()), plain_view(model)
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if (weight.device.type, weight.dtype) == ('cpu', dtype):
        return view
    return copy.deepcopy(view).to('cpu', dtype)


def _fold(model: DRNet, share_weights: bool) -> DeployedDRNet:
    """Fold the predictor and all branches, and make sure that nothing else has changed."""
    images = partial(random_images, model.in_chans, next(model.parameters()))
    memo: dict[Any, Any] = {}

    def fold(module: nn.Module, size: int, into_convs: bool = True) -> nn.Module:
        folded = fold_norms(module, into_convs, memo)
        fuse_convs(folded, images(2, size), packs=not share_weights)
        return folded

    if model.args.resolution_aware_norm:
        branches = [fold(model.branch(j), r, not share_weights) for j, r in enumerate(model.resolutions)]
    else:  # nothing differs between them
        branches = [fold(model.branch(0), model.resolutions[0])] * len(model.resolutions)
    predictor = None
    if model.args.uses_predictor:
        priced, side = priced_predictor(model), model.args.predictor_size
        predictor = fold(priced, side)
        _check_same(predictor, priced, images(2, side))
    deployed = DeployedDRNet(predictor, branches, model)
    for j, (branch, r) in enumerate(zip(branches, model.resolutions, strict=True)):
        _check_same(branch, model.branch(j), images(2, r))
    return deployed


def _check_same(folded: nn.Module, module: nn.Module, x: torch.Tensor) -> None:
    """Make sure of a model of any make that what was left out of its graph, or reparameterized, changes nothing."""
    expected = plain_view(module)(x)
    scale = float(expected.abs().max())
    error = float((folded(x) - expected).abs().max())
    if math.isfinite(scale) and not error <= 10 * math.sqrt(torch.finfo(x.dtype).eps) * scale:
        raise RuntimeError(
            f'{type(module).__name__} cannot be deployed: with its norms folded, the result differs by {error:.2g},'
            f' where the largest value is {scale:.2g}. Use the model as it is.')
