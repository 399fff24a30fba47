"""The report of an analysis: a folder with a page for people, and the same numbers for programs."""

import csv
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.labelled import LabelledImages
from ..data.output_folder import check_output_folder, staged
from ..data.pixels import printable
from .choices import Analysis
from .images import evenly_spaced, readable_images, thumbnail
from .page import render_page

_THUMBNAILS = 24
"""Of each resolution, at most."""


def write_report(
        analysis: Analysis,
        images: LabelledImages,
        out: str | os.PathLike[str],
        model: str,
        source: str,
        class_names: Sequence[str],
        settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a folder with ``index.html``, ``images.csv``, ``classes.csv`` and ``summary.json``.

    The page is one file that needs no network: whoever gets it sees everything, the thumbnails of images as well. The
    folder appears when it is complete, or not at all.

    Args:
        analysis: The analysis.
        images: The dataset, as it is after all batches of the analysis were read from it.
        out: The folder to write, which must not exist or be empty.
        model: Name of the model.
        source: Name of the data.
        class_names: One for each class of the model.
        settings: How it was measured; values that JSON knows.

    Returns:
        The content of ``summary.json``.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: If it is not fit for it, or the analysis is not one of these images.
    """
    target = check_output_folder(out)
    if len(class_names) != analysis.validation.num_classes:
        raise ValueError(
            f'{len(class_names)} class_names for a model of {analysis.validation.num_classes} classes: give one for'
            ' each class.')
    indices = readable_images(images)
    if len(indices) != len(analysis.images):
        raise ValueError(
            f'The analysis is of {len(analysis.images)} images, but {len(indices)} can be read: analyze all images of'
            ' the dataset, and leave their files alone until the report is written.')
    names = [printable(images.name(i)) for i in indices]
    class_names = [printable(name) for name in class_names]
    page = render_page(
        analysis, model=printable(model), source=printable(source), class_names=class_names, names=names,
        thumbnails=_thumbnails(analysis, images, indices),
        unreadable=[(printable(name), printable(reason)) for name, reason in images.unreadable],
        settings={name.replace('_', ' '): printable(_shown(value)) for name, value in settings.items()})
    summary = _summary(analysis, images, settings)
    with staged(target) as folder:
        (folder / 'index.html').write_text(page, encoding='utf-8')
        (folder / 'summary.json').write_text(json.dumps(summary, indent=2, allow_nan=False) + '\n', encoding='utf-8')
        _write_table(folder / 'images.csv', _image_rows(analysis, names, class_names))
        _write_table(folder / 'classes.csv', _class_rows(analysis, class_names))
    return summary


def _thumbnails(
        analysis: Analysis,
        images: LabelledImages,
        indices: Sequence[int],
) -> list[dict[int, str | None]]:
    """Of some images of each resolution, by their numbers in the analysis."""
    groups = [[i for i, image in enumerate(analysis.images) if image.choice == j]
              for j in range(len(analysis.validation.resolutions))]
    return [{i: thumbnail(images, indices[i]) for i in evenly_spaced(group, _THUMBNAILS)} for group in groups]


def _summary(analysis: Analysis, images: LabelledImages, settings: Mapping[str, Any]) -> dict[str, Any]:
    """As ``timm-drnet validate`` has it, and more."""
    return {
        **settings,
        **dataclasses.asdict(analysis.validation),
        **{name: dataclasses.asdict(getattr(analysis, name)) for name in ('choices', 'calibration', 'curve')},
        'unreadable': [{'path': name, 'reason': reason} for name, reason in images.unreadable],
    }


def _image_rows(analysis: Analysis, names: Sequence[str], class_names: Sequence[str]) -> Iterable[Sequence[Any]]:
    sides = [row.resolution for row in analysis.validation.resolutions]
    yield [
        'name', 'label', 'label_name', *(f'prediction_{side}' for side in sides), *(f'right_{side}' for side in sides),
        *(f'probability_{side}' for side in sides), 'choice', 'oracle', 'outcome']
    for name, image in zip(names, analysis.images, strict=True):
        yield [
            name, image.label, class_names[image.label], *image.predictions,
            *('true' if right else 'false' for right in image.right), *(f'{p:.6g}' for p in image.probabilities),
            sides[image.choice], 'none' if image.oracle is None else sides[image.oracle], image.outcome]


def _class_rows(analysis: Analysis, class_names: Sequence[str]) -> Iterable[Sequence[Any]]:
    sides = [row.resolution for row in analysis.validation.resolutions]
    yield [
        'label', 'label_name', 'images', 'top1', f'top1_held_{sides[0]}', *(f'share_{side}' for side in sides),
        'gflops']
    for one in analysis.classes:
        yield [
            one.label, class_names[one.label], one.images,
            *(f'{value:.6g}' for value in (one.top1, one.held_top1, *one.shares, one.gflops))]


def _write_table(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open('w', encoding='utf-8', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows(rows)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return '-' if value in (None, '') else str(value)
