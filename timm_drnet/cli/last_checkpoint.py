"""``timm-drnet last-checkpoint``: with which checkpoint an interrupted run goes on."""

import argparse
import os
import sys
from pathlib import Path

from ..train.resume import last_checkpoint
from .output import UserError, printable, show


def run(args: argparse.Namespace) -> int:
    """Print the path."""
    try:
        path = _find(args.folder)
    except UserError as error:
        # A shell passes on what is printed, whatever the exit code, and to train.py an empty --resume means a new
        # training. So it gets the path of a file that does not exist, which it repeats before it fails.
        if not sys.stdout.isatty():
            print(printable(f'timm-drnet last-checkpoint: {error}'))
        raise
    if sys.stdout.isatty():
        show(str(path))
    else:  # a shell takes it, so it must be the very name
        sys.stdout.buffer.write(os.fsencode(path) + b'\n')
    return 0


def _find(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder; give the one that train.py wrote its checkpoints into')
    found = last_checkpoint(folder)
    if found is None:
        raise UserError(f'{folder}: no whole checkpoint (*.pth.tar) in it; start the training without --resume')
    return found.path
