"""Labels: the names of a model's classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from ..core.drnet import DRNet


def class_labels(model: DRNet) -> tuple[str, ...]:
    """The names of a model's classes: those in its configuration, ImageNet's, or just the class numbers.

    Args:
        model: A DRNet. Names in its configuration count only if there is one for each class: a model that was created
            with another number of classes keeps the old ones.

    Returns:
        One label per class.
    """
    cfg: dict[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    names = cfg.get('label_names') or ()
    if len(names) == model.num_classes:
        descriptions = cfg.get('label_descriptions') or {}
        if not isinstance(descriptions, dict):
            descriptions = dict(zip(names, descriptions, strict=False))
        return tuple(str(descriptions.get(name, name)) for name in names)
    subset = infer_imagenet_subset(model)  # by the number of classes, timm's rule
    if subset:
        return tuple(ImageNetInfo(subset).label_descriptions())
    return tuple(map(str, range(model.num_classes)))


def labels_for(model: DRNet, labels: Sequence[str] | None) -> Sequence[str]:
    """Names for what a model classifies.

    Args:
        model: A DRNet.
        labels: One for each class; None for `class_labels`.

    Returns:
        The labels given, or the model's own.

    Raises:
        ValueError: If there is not one for each class, or the model has no classifier.
    """
    if model.num_classes < 1:
        raise ValueError('The model has no classifier (num_classes=0), so there is nothing to classify.')
    if labels is None:
        return class_labels(model)
    check_labels(labels, model)
    return labels


def check_labels(labels: Sequence[str], model: DRNet) -> None:
    """Check that there is a label for each class.

    Raises:
        ValueError: If there is not.
    """
    if len(labels) != model.num_classes:
        raise ValueError(f'{len(labels)} labels for a model of {model.num_classes} classes: give one for each class.')


def read_names(path: str | Path) -> list[str]:
    """Read a text file with one name per line; blank lines at its end and a byte-order mark do not count.

    Args:
        path: The file, in UTF-8.

    Returns:
        The names, without white space around them.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no text in UTF-8.
    """
    try:
        with open(path, encoding='utf-8-sig') as file:
            names = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise ValueError('not a text file in UTF-8') from error
    while names and not names[-1]:
        names.pop()
    return names
