"""What train.py has left in its folder: how far it got, and the course of its accuracy."""

import csv
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

from timm.utils import load_checkpoint_metadata

LAST = 'last.pth.tar'


@dataclass(frozen=True)
class EpochResult:
    """One line of train.py's summary."""

    epoch: int
    """Counted from 0."""
    train_loss: float
    """Averaged over the epoch."""
    top1: float
    """Per cent of the validation images."""
    top5: float
    """The same."""


def epochs_done(folder: Path) -> int:
    """Number of epochs whose outcome is safe; nothing is changed, so train.py may be at work.

    Args:
        folder: Of one training.

    Returns:
        The number; 0 if no checkpoint can be read.
    """
    return _newest(folder)[0]


def settle(folder: Path) -> int:
    """Put the newest whole checkpoint in the place of ``last.pth.tar``.

    train.py writes ``tmp.pth.tar``, deletes the old ``last.pth.tar`` and renames the new one. Killed in between, it
    leaves a whole checkpoint under the wrong name.

    Args:
        folder: Of one training that is not running.

    Returns:
        As `epochs_done`.
    """
    epochs, path = _newest(folder)
    if path is not None and path.name == 'tmp.pth.tar':
        os.replace(path, folder / LAST)
    elif path is not None and path.name != LAST:  # one of those that train.py keeps for their accuracy
        part = folder / 'last.part'
        shutil.copy2(path, part)
        os.replace(part, folder / LAST)
    return epochs


def _newest(folder: Path) -> tuple[int, Path | None]:
    """Epochs of the newest checkpoint that can be read, and its file."""
    newest: tuple[int, Path | None] = (0, None)
    for path in (folder / LAST, folder / 'tmp.pth.tar', *folder.glob('checkpoint-*.pth.tar')):
        epoch = _read_epoch(path)
        if epoch is not None and epoch + 1 > newest[0]:
            newest = epoch + 1, path
    return newest


def _read_epoch(path: Path) -> int | None:
    """Number of the epoch that a checkpoint ends, None if it is none or only the beginning of one."""
    try:
        return int(load_checkpoint_metadata(str(path))['epoch'])
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError):
        return None


def read_summary(folder: Path) -> list[EpochResult]:
    """The epochs in train.py's ``summary.csv``.

    A resumed training writes its header once more, and repeats an epoch that was interrupted after its evaluation: of
    two lines for the same epoch, the later one belongs to the checkpoint.

    Args:
        folder: Of one training.

    Returns:
        The epochs in order; none if there is no summary.
    """
    try:
        lines = (folder / 'summary.csv').read_text(encoding='utf-8').splitlines()
    except FileNotFoundError:
        return []
    found: dict[int, EpochResult] = {}
    header: list[str] = []
    for cells in csv.reader(lines):
        if cells and cells[0] == 'epoch':
            header = cells
        elif cells and len(cells) == len(header):
            one = dict(zip(header, cells, strict=True))
            epoch = int(one['epoch'])
            # Accuracies are in single precision; no data set has so many images that a fifth digit could mean anything.
            loss, top1, top5 = (round(float(one[key]), 4) for key in ('train_loss', 'eval_top1', 'eval_top5'))
            found[epoch] = EpochResult(epoch, loss, top1, top5)
    return [found[epoch] for epoch in sorted(found)]
