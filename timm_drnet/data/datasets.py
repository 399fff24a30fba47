"""Opening a dataset to measure a model on: its labels must be the model's classes, or the result would be nonsense."""

import logging
import os
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset
from torch.utils.data import IterableDataset

from .class_folders import ClassFolders, folder_of_split, read_class_map
from .labelled import DataError, LabelledImages
from .pixels import first_line, printable

_logger = logging.getLogger(__name__)


def open_labelled_images(
        root: str,
        num_classes: int,
        in_chans: int = 3,
        name: str = '',
        split: str = 'validation',
        class_map: str = '',
        limit: int | None = None,
) -> LabelledImages:
    """Open a folder per class, or another dataset that timm knows, for a model of given classes.

    Args:
        root: The folder; its subfolder for the split is taken if there is one.
        num_classes: Of the model.
        in_chans: Of the model.
        name: As timm's ``--dataset``; empty for a folder or tar file.
        split: As timm's ``--split``.
        class_map: File that gives each class its label, as timm's ``--class-map``; empty for the order of the names.
        limit: Take only the first images.

    Returns:
        The images; give them to `make_loader`.

    Raises:
        DataError: If there are no images, or their labels cannot be those of the model.
    """
    if not Path(root).exists():
        raise DataError(f'{root}: no such folder')
    if in_chans not in (1, 3):
        raise DataError(f'the model takes images of {in_chans} channels, but those of a dataset have 1 or 3')
    mode = 'RGB' if in_chans == 3 else 'L'
    labels = _read_class_map(class_map, folder_of_split(root, split)) if class_map else None
    try:
        dataset = _open_dataset(root, name, split, mode, labels)
    except Exception as error:  # each kind of dataset has its own; all of them are about the arguments
        raise DataError(f'{root}: {str(error).strip() or type(error).__name__}'.splitlines()[0]) from error
    if isinstance(dataset, IterableDataset):
        raise DataError(f'{name} is read as a stream: use a folder, or a dataset with an index such as torch/ or hfds/')
    if class_map and not isinstance(dataset, ImageDataset):
        raise DataError(f'--class-map {class_map}: {name} has labels of its own')
    _check_classes(dataset, root, num_classes, class_map)
    if class_map and not name:
        left_out = len(_open_dataset(root, name, split, mode)) - len(dataset)
        if left_out:
            _logger.warning(printable(
                f'{left_out} images are in folders that --class-map {class_map} does not name: left out.'))
    return LabelledImages(dataset, mode, limit)


def _open_dataset(root: str, name: str, split: str, mode: str, labels: dict[str, int] | None = None) -> Any:
    if os.path.isdir(root) and '/' not in name:
        folder = folder_of_split(root, split)
        return ImageDataset(folder, reader=ClassFolders(folder, labels), input_img_mode=mode)
    return create_dataset(
        name, root=root, split=split, input_img_mode=mode,
        class_map=labels)  # type: ignore[arg-type]  # None is its default


def _read_class_map(name: str, root: str) -> dict[str, int]:
    try:
        labels = read_class_map(name, root)
    except Exception as error:  # timm's own for a pickle are of any kind
        raise DataError(f'--class-map {name}: {first_line(error)}; give a text file with one name a line') from error
    if not labels:
        raise DataError(f'--class-map {name}: the file is empty; give a text file with one name a line')
    return labels


def _check_classes(dataset: Any, root: str, num_classes: int, class_map: str) -> None:
    reader = getattr(dataset, 'reader', dataset)
    labels = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None)
    if not labels:
        return  # nothing is known before the labels are read; validation refuses those out of range
    if class_map:
        for folder, label in labels.items():
            if not isinstance(label, int) or not 0 <= label < num_classes:
                raise DataError(
                    f'--class-map {class_map} gives {folder!r} the label {label!r}, but the {num_classes} classes of'
                    ' the model are counted from 0')
        return
    if '' in labels:
        stray = next((f for f in dataset.filenames() if not Path(f).parent.name), 'the first')
        raise DataError(
            f'{root}: images such as {stray} lie outside a class folder, so they have no label; move each into the'
            ' folder of its class')
    if len(labels) != num_classes:
        raise DataError(
            f'{root} holds images (.png, .jpg, .jpeg) of {len(labels)} classes, but the model has {num_classes}, so'
            ' labels would not match: give the --num-classes of the model, or a --class-map from folder to label')
