"""Validation: a DRNet beside what can be had without a router, and beside the best that a router could do.

Without a router there are the model held at each of its resolutions, the static line through these, and lots at the
router's own shares. They are what tells a router that knows something from one that does not. All of it is computed
from every image's answer at every resolution.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..cost.static_line import CurvePoint, static_line
from ..cost.verdict import Verdict, judge
from .answers import Answers, choose, collect_answers
from .oracle import Oracle, find_oracle, smallest_right


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
    """Images that end at this resolution."""
    share: float
    """The same as a fraction of all images."""
    routed: Score | None
    """Of those images, everything paid for; None if there were none."""
    held: Score
    """Of all images, with the model held at this resolution and no router."""


@dataclass(frozen=True)
class RandomScore:
    """Lots: the measured shares of the resolutions, dealt out to the images at random."""

    mean: Score
    """Expected. It costs no predictor; in a cascade as much as the model, since all smaller rungs have run."""
    std: Accuracy
    """Standard deviation of one deal, which is what Table 5 gives."""


@dataclass(frozen=True)
class Validation:
    """What `validate` measured."""

    images: int
    """Images measured."""
    stage: str
    """The model's stage; in ``pretrain`` a predictor is not in use and every image runs at the largest resolution."""
    router: str
    """What chooses, ``predictor`` or ``cascade``."""
    num_classes: int
    """Number of logits."""
    k: int
    """The k of every ``top5``."""
    dynamic: Score
    """The model as it is used: routed, everything paid for."""
    resolutions: tuple[ResolutionScore, ...]
    """Largest first."""
    random: RandomScore
    """The same shares without a router's knowledge."""
    oracle: Oracle
    """What the best choices would give."""
    static_line: tuple[CurvePoint, ...]
    """The resolutions that make up the static line, the cheapest first."""
    verdict: Verdict | None
    """Whether the router pays; None if there is nothing to choose."""

    @property
    def routed(self) -> bool:
        """Whether a router is in use."""
        return self.router == 'cascade' or self.stage == 'joint'


def validate(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        amp: bool = False,
        channels_last: bool = False,
        seed: int = 0,
) -> Validation:
    """Measure a DRNet, beside itself without a router and beside an oracle.

    The time taken says nothing about the model's speed: every image runs at each resolution.

    Args:
        model: A DRNet, on the device to use. It is put in eval mode for the measurement.
        batches: Images, (B, C, S, S), and their labels, (B,) integers, on any device.
        amp: Whether to run under autocast to bfloat16.
        channels_last: Whether to give the model images in that memory format.
        seed: Of the bootstrap.

    Returns:
        The measurement.

    Raises:
        ValueError: If the model has no classifier, an output is not finite, or there is no image or no such label.
    """
    return summarize(model, collect_answers(model, batches, amp, channels_last), seed)


def summarize(model: DRNet, answers: Answers, seed: int = 0) -> Validation:
    """Count what is in the answers of a DRNet.

    Args:
        model: The DRNet.
        answers: Of labelled images.
        seed: Of the bootstrap.

    Returns:
        The measurement.

    Raises:
        ValueError: If the images have no labels.
    """
    rows = cost_table(model)
    backbone, total = [row.backbone_flops for row in rows], [row.total_flops for row in rows]
    choices, hits = choose(model, answers), answers.hits
    images = len(answers)
    counts = torch.bincount(choices, minlength=len(rows)).tolist()
    routed = hits[torch.arange(images), choices]

    def score(found: torch.Tensor, flops: float) -> Score:
        top1, top5 = (100 * n / len(found) for n in found.sum(dim=0).tolist())
        return Score(top1, top5, flops / 1e9, flops / backbone[0])

    resolutions = tuple(
        ResolutionScore(
            row.resolution, n, n / images,
            routed=score(routed[choices == j], total[j]) if n else None,
            held=score(hits[:, j], backbone[j]),
        )
        for j, (row, n) in enumerate(zip(rows, counts, strict=True)))
    verdict = None
    if len(rows) > 1 and (model.args.uses_predictor or model.args.router == 'cascade'):
        verdict = judge(choices, hits[..., 0], backbone, total, model.resolutions, seed)
    return Validation(
        images=images,
        stage=model.args.stage,
        router=model.args.router,
        num_classes=model.num_classes,
        k=answers.classes.shape[2],
        dynamic=score(routed, sum(n * f for n, f in zip(counts, total, strict=True)) / images),
        resolutions=resolutions,
        random=_deal(hits, counts, backbone if model.args.router == 'predictor' else total, backbone[0]),
        oracle=find_oracle(rows, smallest_right(hits[..., 0])),
        static_line=static_line([
            CurvePoint(row.held.gflops, row.held.top1, f'{row.resolution} px') for row in resolutions]),
        verdict=verdict,
    )


def _deal(hits: torch.Tensor, counts: Sequence[int], flops: Sequence[int], largest: int) -> RandomScore:
    """Mean and standard deviation over all ways to deal so many images to each resolution.

    What an image is right by at a resolution, beyond the mean over its own deals and over all images there, adds to the
    variance (Hoeffding, `A Combinatorial Central Limit Theorem`, 1951).
    """
    images = len(hits)
    shares = torch.tensor(counts, dtype=torch.float64) / images
    right = hits.double()  # (N, M, 2)
    means = torch.einsum('j,njk->nk', shares, right)
    beyond = right - means[:, None] - right.mean(dim=0) + means.mean(dim=0)
    variance = torch.einsum('j,njk->k', shares, beyond ** 2) * images / max(images - 1, 1)
    top1, top5 = (100 * means.mean(dim=0)).tolist()
    spent = sum(n * f for n, f in zip(counts, flops, strict=True)) / images
    return RandomScore(
        Score(top1, top5, spent / 1e9, spent / largest),
        Accuracy(*(100 * math.sqrt(v) / images for v in variance.tolist())))
