"""Validation: a DRNet beside itself held at each of its resolutions, and beside a router that draws lots.

The two comparisons are what tells a predictor that has learned something from one that has not. They need no more
than every image's answer at every resolution: in eval mode it does not depend on the other images of a batch.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..core.drnet import DRNet
from ..cost.flops import cost_table

_DRAWS = 3  # of the random router, as in Table 5


@dataclass(frozen=True)
class Accuracy:
    """Per cent of the images classified correctly."""

    top1: float
    """The label has the largest logit."""
    top5: float
    """The label is among the k largest logits; k is 5, or the number of classes if there are fewer."""


@dataclass(frozen=True)
class Score(Accuracy):
    """Accuracy, and what it costs."""

    gflops: float
    """Average per image in GFLOPs (multiply-accumulates)."""
    fraction: float
    """The same as a fraction of the backbone's at the largest resolution."""


@dataclass(frozen=True)
class ResolutionScore:
    """One candidate resolution."""

    resolution: int
    """Side of the image in pixels."""
    images: int
    """Images that the model ran at this resolution."""
    share: float
    """The same as a fraction of all images."""
    routed: Score | None
    """Of those images, predictor included; None if there were none."""
    held: Score
    """Of all images, with the model held at this resolution and no predictor."""


@dataclass(frozen=True)
class RandomScore:
    """A router that gives the measured shares of the resolutions to images drawn at random."""

    draws: tuple[Score, ...]
    """One score per draw, without predictor."""
    mean: Score
    """Over the draws."""
    std: Accuracy
    """Population standard deviation over the draws, which is what Table 5 gives."""


@dataclass(frozen=True)
class Validation:
    """What `validate` measured."""

    images: int
    """Images measured."""
    stage: str
    """The model's stage; in ``pretrain`` the predictor is not in use and every image runs at the largest resolution."""
    num_classes: int
    """Number of logits."""
    k: int
    """The k of every ``top5``."""
    dynamic: Score
    """The model as it is used: routed, predictor included."""
    resolutions: tuple[ResolutionScore, ...]
    """Largest first."""
    random: RandomScore
    """The same shares without a predictor's knowledge."""


@torch.inference_mode()
def validate(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        amp: bool = False,
        channels_last: bool = False,
        seed: int = 0,
) -> Validation:
    """Measure a DRNet, itself held at each resolution, and a random router at the same shares.

    The time taken says nothing about the model's speed: every image runs as it is routed and at each resolution.

    Args:
        model: A DRNet, on the device to use. It is put in eval mode for the measurement.
        batches: Images, (B, C, S, S), and their labels, (B,) integers, on any device.
        amp: Whether to run under autocast to bfloat16.
        channels_last: Whether to give the model images in that memory format.
        seed: Of the random router.

    Returns:
        The measurement.

    Raises:
        ValueError: If the model has no classifier, its logits are not finite, or there is no image or no such label.
    """
    if model.num_classes < 1:
        raise ValueError('The model has no classifier (num_classes=0), so there is nothing to validate.')
    was_training = model.training
    model.eval()
    try:
        choices, routed, held = _run(model, batches, amp, channels_last)
    finally:
        model.train(was_training)
    return summarize(model, choices, routed, held, seed)


def _run(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        amp: bool,
        channels_last: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choices (N,), routed hits (N, 2) and held hits (N, M, 2): N images, M candidates, top-1 and top-k."""
    weight = next(model.parameters())
    candidates = range(len(model.resolutions))
    k = min(5, model.num_classes)
    choices, routed, held = [], [], []
    for images, target in batches:
        check_labels(target, model.num_classes)
        x = images.to(weight.device, weight.dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        target = target.to(weight.device)
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=amp):
            routed.append(hits(model(x), target, k).cpu())
            choices.append(model.predict_resolution(x).cpu())
            held.append(torch.stack([hits(model.forward_at(x, j), target, k) for j in candidates], dim=1).cpu())
    if not choices:
        raise ValueError('There are no images to validate on.')
    return torch.cat(choices), torch.cat(routed), torch.cat(held)


def check_labels(target: torch.Tensor, num_classes: int) -> None:
    """Refuse labels that are no classes.

    Args:
        target: The labels of a batch, (B,) integers.
        num_classes: Of the model.

    Raises:
        ValueError: If one is out of range.
    """
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < num_classes:
        raise ValueError(
            f'The labels of a batch run from {int(target.min())} to {int(target.max())}, but the model has'
            f' {num_classes} classes, counted from 0.')


def hits(logits: torch.Tensor, target: torch.Tensor, k: int) -> torch.Tensor:
    """Whether the label has the largest logit, and whether it is among the k largest.

    Args:
        logits: (B, num_classes).
        target: The labels, (B,) integers.
        k: At most num_classes.

    Returns:
        (B, 2) booleans.

    Raises:
        ValueError: If a logit is not finite.
    """
    if not logits.isfinite().all():
        raise ValueError('The model gives logits that are not finite: its weights are damaged.')
    top = logits.topk(k, dim=1).indices == target[:, None]
    return torch.stack([top[:, 0], top.any(dim=1)], dim=1)


def summarize(model: DRNet, choices: torch.Tensor, routed: torch.Tensor, held: torch.Tensor, seed: int) -> Validation:
    """Count what was measured on N images at M candidates.

    Args:
        model: The DRNet.
        choices: (N,) integers.
        routed: `hits` of the model as it is used, (N, 2).
        held: `hits` at each candidate, (N, M, 2).
        seed: Of the random router.

    Returns:
        The measurement.
    """
    rows = cost_table(model)
    backbone = [row.backbone_flops for row in rows]
    # In the pretrain stage the predictor does not run.
    total = [row.total_flops for row in rows] if model.args.stage == 'joint' else backbone
    images = len(choices)
    counts = torch.bincount(choices, minlength=len(rows)).tolist()

    def score(found: torch.Tensor, flops: float) -> Score:
        top1, top5 = (100 * n / len(found) for n in found.sum(dim=0).tolist())
        return Score(top1, top5, flops / 1e9, flops / backbone[0])

    def average(flops: list[int]) -> float:
        return float(sum(n * f for n, f in zip(counts, flops, strict=True)) / images)

    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(_DRAWS):
        drawn = choices[torch.randperm(images, generator=generator)]  # a permutation keeps the shares exactly
        draws.append(score(held[torch.arange(images), drawn], average(backbone)))
    top1, top5 = [d.top1 for d in draws], [d.top5 for d in draws]
    return Validation(
        images=images,
        stage=model.args.stage,
        num_classes=model.num_classes,
        k=min(5, model.num_classes),
        dynamic=score(routed, average(total)),
        resolutions=tuple(
            ResolutionScore(
                row.resolution, n, n / images,
                routed=score(routed[choices == j], total[j]) if n else None,
                held=score(held[:, j], backbone[j]),
            )
            for j, (row, n) in enumerate(zip(rows, counts, strict=True))
        ),
        random=RandomScore(
            draws=tuple(draws),
            mean=Score(statistics.fmean(top1), statistics.fmean(top5), draws[0].gflops, draws[0].fraction),
            std=Accuracy(statistics.pstdev(top1), statistics.pstdev(top5)),
        ),
    )
