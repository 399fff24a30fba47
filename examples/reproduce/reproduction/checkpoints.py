"""What train.py has left in its folder: how far it got, and the course of its accuracy."""

import csv
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from timm_drnet.train.resume import last_checkpoint

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
        The number; 0 if no checkpoint is whole.
    """
    last = last_checkpoint(folder)
    return last.epochs if last else 0


def settle(folder: Path) -> int:
    """Put the newest whole checkpoint in the place of ``last.pth.tar``.

    Args:
        folder: Of one training that is not running.

    Returns:
        As `epochs_done`.
    """
    last = last_checkpoint(folder)
    if last is None:
        return 0
    if last.path.name == 'tmp.pth.tar':
        os.replace(last.path, folder / LAST)
    elif last.path.name != LAST:  # one of those that train.py keeps for their accuracy
        part = folder / 'last.part'
        shutil.copy2(last.path, part)
        os.replace(part, folder / LAST)
    return last.epochs


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
