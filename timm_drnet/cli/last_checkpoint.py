"""``timm-drnet last-checkpoint``: with which checkpoint an interrupted run goes on."""

import argparse
import os
import sys

from ..train.resume import last_checkpoint
from .output import UserError, show


def run(args: argparse.Namespace) -> int:
    """Print the path."""
    if not args.folder.is_dir():
        raise UserError(f'{args.folder}: no such folder')
    found = last_checkpoint(args.folder)
    if found is None:
        raise UserError(f'{args.folder}: no whole checkpoint (*.pth.tar) in it; start the training without --resume')
    if sys.stdout.isatty():
        show(str(found.path))
    else:  # a shell takes it, so it must be the very name
        sys.stdout.buffer.write(os.fsencode(found.path) + b'\n')
    return 0
