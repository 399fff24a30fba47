"""Analysis: the choices of a router, image by image, held against those of an oracle that knows the labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import torch

from ..core.drnet import DRNet
from ..cost.flops import CostRow, cost_table
from ..evaluate.answers import Answers, choose, collect_answers
from ..evaluate.curve import Curve, all_budgets
from ..evaluate.oracle import smallest_right
from ..evaluate.validation import Validation, summarize
from .calibration import Calibration, calibrate


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
    """The predictor's, of each resolution; in a cascade the confidence of the answer at each."""
    choice: int
    """Index of the resolution that the model chose."""
    oracle: int | None
    """Index of the smallest resolution at which the classification is right; None if it is right at none."""
    outcome: str
    """One of the names of `Outcomes`."""


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
    """The router's choices against the oracle's."""

    confusion: tuple[tuple[int, ...], ...]
    """Images by the oracle's choice, a row for each resolution and a last one for right at none, and by the router's
    choice, a column for each resolution."""
    agreement: float
    """Fraction of the images on which both spend the same."""
    agreement_by_chance: float
    """The same if the router's choices were dealt out to the images at random: its average."""
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
    """Average per image in GFLOPs, everything paid for."""


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found."""

    validation: Validation
    """The model as it is used, beside what can be had without a router, and beside the oracle."""
    choices: Choices
    """The router against the oracle."""
    calibration: Calibration
    """Of the predictor's probabilities, against the oracle's choices; in a cascade of the confidence of its answers,
    against what is right."""
    curve: Curve
    """The model at all budgets."""
    classes: tuple[ClassAnalysis, ...]
    """Those that have images, in the order of their labels."""
    images: tuple[ImageAnalysis, ...]
    """In the order of the batches."""


def analyze(
        model: DRNet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        amp: bool = False,
        seed: int = 0,
) -> Analysis:
    """Hold a DRNet's choices of resolutions against the best ones that its backbone allows.

    Args:
        model: A DRNet with a router in use, on the device to use. It is put in eval mode for it.
        batches: Images, (B, C, S, S), and their labels, (B,) integers, on any device.
        amp: Whether to run under autocast to bfloat16.
        seed: Of the bootstrap.

    Returns:
        The analysis.

    Raises:
        ValueError: If no router is in use, the model has no classifier, an output is not finite, or there is no image
            or no such label.
    """
    check_analyzable(model)
    return score_answers(model, collect_answers(model, batches, amp), seed)


def check_analyzable(model: DRNet) -> None:
    """Refuse a model that chooses no resolutions or knows no classes.

    Args:
        model: A DRNet.

    Raises:
        ValueError: If no router is in use, or the model has no classifier.
    """
    if not (model.args.uses_predictor or model.args.router == 'cascade'):
        raise ValueError(
            f'The model is of the {model.args.stage} stage, in which the predictor is not in use and there are no'
            " choices to analyze: take a model of the joint stage (stage='joint').")
    if model.num_classes < 1:
        raise ValueError('The model has no classifier (num_classes=0), so there is nothing to analyze.')


def score_answers(model: DRNet, answers: Answers, seed: int = 0) -> Analysis:
    """Count what is in the answers of a DRNet.

    Args:
        model: The DRNet.
        answers: Of at least one image, with labels.
        seed: Of the bootstrap.

    Returns:
        The analysis.

    Raises:
        ValueError: If the images have no labels.
    """
    validation = summarize(model, answers, seed)  # which refuses answers without labels
    assert answers.labels is not None
    rows = cost_table(model)
    choices, right = choose(model, answers), answers.hits[..., 0]
    at_choice = right.gather(1, choices[:, None])[:, 0]
    needed = smallest_right(right)
    spent = needed.clamp(max=len(rows) - 1)  # the smallest where none is right
    outcomes = _outcomes(right, choices)
    if answers.scores is None:
        probabilities, came_true = answers.probabilities[..., 0].double(), at_choice
    else:
        probabilities, came_true = answers.scores.double().softmax(dim=1), choices == spent
    return Analysis(
        validation=validation,
        choices=_compare(choices, needed, spent, right, outcomes),
        calibration=calibrate(probabilities.gather(1, choices[:, None])[:, 0], came_true),
        curve=Curve(all_budgets(model, answers), validation.static_line),
        classes=_classes(rows, answers.labels, choices, right),
        images=tuple(
            ImageAnalysis(label, tuple(classes), tuple(hits), tuple(each), choice,
                          None if oracle == len(rows) else oracle, outcome)
            for label, classes, hits, each, choice, oracle, outcome in zip(
                answers.labels.tolist(), answers.classes[..., 0].tolist(), right.tolist(), probabilities.tolist(),
                choices.tolist(), needed.tolist(), outcomes, strict=True)),
    )


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
        outcomes=Outcomes(**{field.name: outcomes.count(field.name) for field in fields(Outcomes)}),
    )


def _classes(
        rows: Sequence[CostRow],
        labels: torch.Tensor,
        choices: torch.Tensor,
        right: torch.Tensor,
) -> tuple[ClassAnalysis, ...]:
    found = []
    for label in labels.unique().tolist():  # sorted
        mine = labels == label
        counts = torch.bincount(choices[mine], minlength=len(rows)).tolist()
        n = sum(counts)
        flops = sum(row.total_flops * count for row, count in zip(rows, counts, strict=True)) / n
        found.append(ClassAnalysis(
            label, n, 100 * _mean(right[mine].gather(1, choices[mine, None])), 100 * _mean(right[mine, 0]),
            tuple(count / n for count in counts), flops / 1e9))
    return tuple(found)


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())
