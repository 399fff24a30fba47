"""Labels: the names of a model's classes."""

from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset

from .drnet import DRNet


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
