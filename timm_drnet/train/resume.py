"""Checkpoints of interrupted runs: which one is whole, and what is said of one that is not.

timm's train.py writes each checkpoint under another name first, so a process that dies leaves at most that one in
halves. Disks that fill up and machines that lose power can still damage the others, and PyTorch does not look at the
checksums of what it reads: a damaged file becomes either an error that names no file, or wrong weights.

timm's ``--resume`` is checked in processes that train a DRNet, which is known once a task of timm's has taken one.
What a file holds could not decide it: of a damaged one it cannot be told.
"""

import functools
import os
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.task import TrainingTask, resume_task_checkpoint
from timm.utils import load_checkpoint_metadata, unwrap_model
from torch import nn

from ..core.drnet import DRNet


class CheckpointError(ValueError):
    """A checkpoint that must not be loaded, with the one to take in its place."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that train.py wrote at the end of an epoch."""

    path: Path
    """The file."""
    epochs: int
    """Number of epochs done."""


def last_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint | None:
    """Find the checkpoint with which an interrupted run goes on.

    ``last.pth.tar`` is not always it: it may be damaged, and a process that was killed while it changed places with
    its successor leaves none, but a whole ``tmp.pth.tar``. Recovery checkpoints are left out: train.py would skip what
    their epoch still had to come.

    Args:
        folder: Into which train.py wrote; it is only read.

    Returns:
        The newest whole checkpoint, or None if there is none.
    """
    found = []
    for path in Path(folder).glob('*.pth.tar'):
        try:
            metadata = load_checkpoint_metadata(str(path))
            found.append(Checkpoint(path, int(metadata['epoch']) + (metadata.get('version', 1) > 1)))
        except Exception:  # of damaged files torch makes errors of many kinds
            continue
    # Names of the same checkpoint: `last` comes first, `tmp` at the end.
    names = {'last.pth.tar': 0, 'tmp.pth.tar': 2}
    found.sort(key=lambda one: (-one.epochs, names.get(one.path.name, 1), one.path.name))
    whole = (one for one in found if not one.path.name.startswith('recovery-') and _damage(one.path) is None)
    return next(whole, None)


def check_checkpoint(path: str | os.PathLike[str]) -> None:
    """Make sure that a checkpoint is what was written, down to the last byte.

    Args:
        path: A file of ``torch.save``. There are no checksums in its format before PyTorch 1.6, nor after
            ``torch.serialization.set_crc32_options(False)``: of such a file nothing is said but that its end is there.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it is empty, cut off or changed; names the last good one in the same folder.
    """
    path = Path(path)
    damage = _damage(path)
    if damage is None:
        return
    good = last_checkpoint(path.parent)
    remedy = (
        f'the last good one is {good.path}, after {good.epochs} epochs' if good is not None
        else f'there is no good one in {path.parent}')
    raise CheckpointError(f'{path} is damaged ({damage}); {remedy}.')


def _damage(path: Path) -> str | None:
    """What is wrong with a file, if it can be told."""
    with path.open('rb') as file:
        start = file.read(4)
    if not start:
        return 'it is empty'
    if start != b'PK\x03\x04':  # not a zip archive
        return None if start.strip(b'\0') else 'it begins with zeros'
    try:
        with zipfile.ZipFile(path) as archive:
            # Every archive of torch.save has entries that are not empty, whose checksum is 0 only if none was written.
            has_checksums = any(entry.CRC for entry in archive.infolist())
            changed = archive.testzip() if has_checksums else None
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f'its end is missing or its index was changed: {error}'
    return f'{changed} in it was changed' if changed else None


def install_resume_check() -> None:
    """Make timm's ``--resume`` refuse damaged checkpoints where a DRNet is trained; called once, by importing."""
    nn.modules.module.register_module_module_registration_hook(_watch_tasks)


def _watch_tasks(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
    """Module registration hook: the first timm task that takes a DRNet to train switches the check on."""
    if isinstance(module, TrainingTask) and name == 'trainable_module' and isinstance(unwrap_model(submodule), DRNet):
        _check_what_timm_resumes()


@functools.cache  # once
def _check_what_timm_resumes() -> None:
    """Put the check before timm's reading.

    timm has no hook for it, and its train.py holds the public functions by the time it imports a plugin. Both of them
    read through one function, which is therefore the one to replace. Should it be renamed, PyTorch's errors are back.
    """
    helpers = sys.modules[resume_task_checkpoint.__module__]
    read = getattr(helpers, '_load_train_checkpoint', None)
    if read is None:
        return

    @functools.wraps(read)
    def read_checked(checkpoint_path: str, *args: Any, **kwargs: Any) -> Any:
        check_checkpoint(checkpoint_path)
        return read(checkpoint_path, *args, **kwargs)

    vars(helpers)['_load_train_checkpoint'] = read_checked
