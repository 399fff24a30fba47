"""Analysis: the choices of a resolution predictor, image by image, held against those of an oracle.

The oracle knows the labels. For each image it takes the smallest resolution at which the classification is right, as
Figure 1 of the paper has it, and the smallest of all for an image that is right at none, as no size helps. No router
for this backbone is right more often, and none that is right as often costs less.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from ..core.drnet import DRNet
from ..cost.flops import CostRow, cost_table
from ..evaluate.answers import Answers, collect_answers
from ..evaluate.validation import Validation, summarize
from .calibration import Calibration, calibrate
from .verdict import Curve, Verdict


@dataclass(frozen=True)
class ImageAnalysis:
    """One image. Everything that is given for each resolution has the largest first."""

    label: int
    """The right class."""
    predictions: tuple[int, ...]
    """Class at each resolution."""
    right: tuple[bool, ...]
    """Whether that is the label."""
    probabilities: tuple[float, ...]
    """The predictor's, of each resolution."""
    choice: int
    """Index of the resolution that the model chose."""
    oracle: int | None
    """Index of the smallest resolution at which the classification is right; None if it is right at none."""
    outcome: str
    """One of the names of `Outcomes`."""


@dataclass(frozen=True)
class Oracle:
    """What the best choices would give."""

    top1: float
    """Per cent of the images that are classified correctly at one resolution or another."""
    gflops: float
    """Average per image in GFLOPs (multiply-accumulates), without predictor."""
    fraction: float
    """The same as a fraction of the backbone's at the largest resolution."""
    gflops_with_predictor: float
    """Average per image, predictor included."""
    fraction_with_predictor: float
    """The same as a fraction of the backbone's at the largest resolution."""
    images: tuple[int, ...]
    """Images by the smallest resolution at which they are right, largest first."""
    none_right: int
    """Images that are right at no resolution."""


@dataclass(frozen=True)
class Outcomes:
    """What became of the images: numbers that add up to all of them."""

    just_right: int
    """Classified correctly, at the smallest resolution that will do."""
    needlessly_large: int
    """Classified correctly, as they would be at a smaller resolution."""
    too_small: int
    """Classified wrongly, but correctly at a larger resolution."""
    only_smaller_right: int
    """Classified wrongly, and correctly only at a smaller resolution."""
    none_right: int
    """Classified wrongly at every resolution."""


@dataclass(frozen=True)
class Choices:
    """The predictor's choices against the oracle's."""

    confusion: tuple[tuple[int, ...], ...]
    """Images by the oracle's choice, a row for each resolution and a last one for right at none, and by the predictor's
    choice, a column for each resolution."""
    agreement: float
    """Fraction of the images on which both spend the same."""
    agreement_by_chance: float
    """The same if the predictor's choices were dealt out to the images at random: its average."""
    right_when_possible: float | None
    """Fraction classified correctly of the images that are right at some resolution; None if there are none."""
    outcomes: Outcomes
    """The images by what became of them."""


@dataclass(frozen=True)
class ClassAnalysis:
    """The images of one class."""

    label: int
    """The class."""
    images: int
    """Images that have this label."""
    top1: float
    """Per cent classified correctly, as the model is used."""
    held_top1: float
    """Per cent classified correctly at the largest resolution."""
    shares: tuple[float, ...]
    """Fraction of its images that the model runs at each resolution, largest first."""
    gflops: float
    """Average per image in GFLOPs, predictor included."""


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found."""

    validation: Validation
    """The model as it is used, held at each resolution, and beside a random router."""
    oracle: Oracle
    """The upper bound."""
    choices: Choices
    """The predictor against the oracle."""
    calibration: Calibration
    """Of the predictor's probabilities."""
    classes: tuple[ClassAnalysis, ...]
    """Those that have images, in the order of their labels."""
    images: tuple[ImageAnalysis, ...]
    """In the order of the batches."""
    verdict: Verdict | None = None
    """Whether the router pays; None if that was not measured."""
    curve: Curve | None = None
    """The model at all budgets; None if that was not measured."""


def analyze(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        amp: bool = False,
        seed: int = 0,
) -> Analysis:
    """Hold a DRNet's choices of resolutions against the best ones that its backbone allows.

    Args:
        model: A DRNet in the joint stage, on the device to use. It is put in eval mode for it.
        batches: Images, (B, C, S, S), and their labels, (B,) integers, on any device.
        amp: Whether to run under autocast to bfloat16.
        seed: Of the random router.

    Returns:
        The analysis.

    Raises:
        ValueError: If the predictor is not in use, the model has no classifier, an output is not finite, or there is no
            image or no such label.
    """
    return score_answers(model, collect_answers(model, batches, amp), seed)


def score_answers(model: DRNet, answers: Answers, seed: int = 0) -> Analysis:
    """Count what is in the answers of a DRNet.

    Args:
        model: The DRNet.
        answers: At least one image.
        seed: Of the random router.

    Returns:
        The analysis.
    """
    rows = cost_table(model)
    right = answers.hits[..., 0]
    routed = answers.hits[torch.arange(len(right)), answers.choices]
    needed = _smallest_right(right)
    spent = needed.clamp(max=len(rows) - 1)  # the smallest where none is right
    outcomes = _outcomes(right, answers.choices)
    return Analysis(
        validation=summarize(model, answers.choices, routed, answers.hits, seed),
        oracle=_oracle(rows, needed, spent),
        choices=_compare(answers.choices, needed, spent, right, outcomes),
        calibration=calibrate(
            answers.probabilities.gather(1, answers.choices[:, None])[:, 0], answers.choices == spent),
        classes=_classes(rows, answers, routed[:, 0]),
        images=tuple(
            ImageAnalysis(label, tuple(predictions), tuple(hits), tuple(probabilities), choice,
                          None if oracle == len(rows) else oracle, outcome)
            for label, predictions, hits, probabilities, choice, oracle, outcome in zip(
                answers.labels.tolist(), answers.predictions.tolist(), right.tolist(), answers.probabilities.tolist(),
                answers.choices.tolist(), needed.tolist(), outcomes, strict=True)),
    )


def _smallest_right(right: torch.Tensor) -> torch.Tensor:
    """Index of the smallest resolution that is right, (N,); M where none is. The smallest resolution is the last."""
    number = right.shape[1]
    last = torch.where(right, torch.arange(number), -1).amax(dim=1)
    return torch.where(last < 0, number, last)


def _oracle(rows: Sequence[CostRow], needed: torch.Tensor, spent: torch.Tensor) -> Oracle:
    images = len(needed)
    counts = torch.bincount(needed, minlength=len(rows) + 1).tolist()
    backbone = sum(rows[j].backbone_flops * n for j, n in enumerate(torch.bincount(spent).tolist())) / images
    total = backbone + rows[0].predictor_flops
    largest = rows[0].backbone_flops
    return Oracle(
        100 * (images - counts[-1]) / images, backbone / 1e9, backbone / largest, total / 1e9, total / largest,
        tuple(counts[:-1]), counts[-1])


def _outcomes(right: torch.Tensor, choices: torch.Tensor) -> list[str]:
    """The name of each image's outcome, of those of `Outcomes`."""
    names = []
    for hits, choice in zip(right.tolist(), choices.tolist(), strict=True):
        larger, smaller = any(hits[:choice]), any(hits[choice + 1:])
        if hits[choice]:
            names.append('needlessly_large' if smaller else 'just_right')
        else:
            names.append('too_small' if larger else 'only_smaller_right' if smaller else 'none_right')
    return names


def _compare(
        choices: torch.Tensor,
        needed: torch.Tensor,
        spent: torch.Tensor,
        right: torch.Tensor,
        outcomes: Sequence[str],
) -> Choices:
    images, number = right.shape
    confusion = torch.bincount(needed * number + choices, minlength=(number + 1) * number).view(number + 1, number)
    share_chosen = torch.bincount(choices, minlength=number).double() / images
    share_spent = torch.bincount(spent, minlength=number).double() / images
    possible = right.any(dim=1)
    at_choice = right.gather(1, choices[:, None])[:, 0]
    return Choices(
        confusion=tuple(map(tuple, confusion.tolist())),
        agreement=_mean(choices == spent),
        agreement_by_chance=float(share_chosen @ share_spent),
        right_when_possible=_mean(at_choice[possible]) if possible.any() else None,
        outcomes=Outcomes(**{name: outcomes.count(name) for name in Outcomes.__dataclass_fields__}),
    )


def _classes(rows: Sequence[CostRow], answers: Answers, at_choice: torch.Tensor) -> tuple[ClassAnalysis, ...]:
    found = []
    for label in answers.labels.unique().tolist():  # sorted
        mine = answers.labels == label
        counts = torch.bincount(answers.choices[mine], minlength=len(rows)).tolist()
        n = sum(counts)
        flops = sum(row.total_flops * count for row, count in zip(rows, counts, strict=True)) / n
        found.append(ClassAnalysis(
            label, n, 100 * _mean(at_choice[mine]), 100 * _mean(answers.hits[mine, 0, 0]),
            tuple(count / n for count in counts), flops / 1e9))
    return tuple(found)


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())
