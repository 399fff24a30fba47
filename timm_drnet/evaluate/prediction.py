"""Prediction: what is in some image files, at which resolution the model looked, and what that cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..data.labels import labels_for
from ..data.pixels import REDUCING_GAP
from ..data.reading import Unreadable, data_config, image_loader, read_batches
from ..deploy.eval_mode import evaluating


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image."""

    path: Path
    """The file."""
    labels: tuple[str, ...]
    """The most probable labels, best first."""
    probabilities: tuple[float, ...]
    """Of the labels, between 0 and 1."""
    resolution: int
    """Side in pixels at which the image was classified."""
    flops: int
    """What was spent on it: the backbone at the resolution, and the predictor or the smaller rungs of a cascade."""


@dataclass(frozen=True)
class Predictions:
    """What the model says about all images, and what it costs."""

    images: tuple[Prediction, ...]
    """In the order of the files."""
    unreadable: tuple[Unreadable, ...]
    """Files that were skipped."""
    costs: dict[int, int]
    """FLOPs of one image at each candidate resolution, largest first, everything paid for."""
    plain_flops: int
    """FLOPs of one image for the plain backbone: at the largest resolution, without a router."""
    crop_pct: float = 1.0
    """The part of an image's shorter side that the model saw, about its centre."""

    @property
    def flops(self) -> int:
        """What was spent on all images."""
        return sum(image.flops for image in self.images)

    @property
    def largest_flops(self) -> int:
        """What the plain backbone would have spent on them."""
        return len(self.images) * self.plain_flops

    @property
    def counts(self) -> dict[int, int]:
        """Images at each candidate resolution, largest first."""
        chosen = [image.resolution for image in self.images]
        return {resolution: chosen.count(resolution) for resolution in self.costs}


@torch.inference_mode()
def predict_images(
        model: DRNet,
        paths: Sequence[str | Path],
        labels: Sequence[str] | None = None,
        topk: int = 1,
        batch_size: int = 32,
        progress: bool = False,
        reducing_gap: float | None = REDUCING_GAP,
) -> Predictions:
    """Classify image files, each at the resolution that the model chooses for it.

    Images are prepared as timm prepares them for the model's evaluation.

    Args:
        model: A DRNet, on the device to use. It is put in eval mode for the prediction.
        paths: Image files, such as `find_images` lists.
        labels: One for each class, or None for `class_labels`.
        topk: Number of labels for each image; all labels if there are fewer.
        batch_size: Images that are routed together.
        progress: Whether to show a progress bar, if stderr is a terminal and it takes more than a second.
        reducing_gap: How many times the size that the model needs a JPEG file is decoded at least; None to decode all.

    Returns:
        The predictions. Files that cannot be read are listed apart.

    Raises:
        ValueError: If an argument is out of range, or the model has no classifier, takes neither RGB nor grey images,
            or gives scores that are not finite.
    """
    labels = labels_for(model, labels)
    if topk < 1:
        raise ValueError(f'Invalid topk {topk}: use at least 1.')
    if batch_size < 1:
        raise ValueError(f'Invalid batch_size {batch_size}: use at least 1.')
    load = image_loader(model, reducing_gap=reducing_gap)
    rows = cost_table(model)
    weight = next(model.parameters())
    images: list[Prediction] = []
    unreadable: list[Unreadable] = []
    classify: Any = model.classify  # not of the core: a cascade answers on its way to the choice
    with evaluating(model):
        bar = tqdm(paths, desc='predict', unit='image', delay=1, leave=False, disable=None if progress else True)
        for batch in read_batches(bar, load, batch_size, unreadable):
            x = torch.stack([image for _, image in batch]).to(weight.device, weight.dtype)
            logits, choice = classify(x)
            best = logits.float().softmax(dim=1).topk(min(topk, model.num_classes), dim=1)
            for (path, _), j, values, indices in zip(
                    batch, choice.tolist(), best.values.tolist(), best.indices.tolist(), strict=True):
                if not math.isfinite(values[0]):
                    raise ValueError(f'The model gives scores for {path} that are not finite: its weights are damaged.')
                images.append(Prediction(
                    path, tuple(labels[i] for i in indices), tuple(values), rows[j].resolution, rows[j].total_flops))
    return Predictions(
        tuple(images), tuple(unreadable),
        {row.resolution: row.total_flops for row in rows}, rows[0].backbone_flops, data_config(model)['crop_pct'])


def format_flops(flops: float, like: float | None = None) -> str:
    """FLOPs in a unit that suits them, to three digits.

    Args:
        flops: The number to write.
        like: A number whose unit to use instead, so that a column has one.

    Returns:
        For example ``48.6 MFLOPs``.
    """
    unit, name = (1e9, 'GFLOPs') if (flops if like is None else like) >= 1e9 else (1e6, 'MFLOPs')
    value = flops / unit
    return f'{value:.{max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0}f} {name}'
