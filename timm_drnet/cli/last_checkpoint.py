"""``timm-drnet last-checkpoint``: with which checkpoint an interrupted run goes on."""

import argparse
from pathlib import Path

from ..train.resume import last_checkpoint
from .common import Subparsers, UserError


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    parser = commands.add_parser(
        'last-checkpoint', help='find the checkpoint with which an interrupted training goes on',
        description='Print the path of the newest whole checkpoint of a training: train.py --resume "$(timm-drnet'
        ' last-checkpoint FOLDER)".')
    parser.add_argument('folder', metavar='FOLDER', type=Path, help='into which train.py wrote its checkpoints')
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the path."""
    if not args.folder.is_dir():
        raise UserError(f'{args.folder}: no such folder')
    found = last_checkpoint(args.folder)
    if found is None:
        raise UserError(f'{args.folder}: no whole checkpoint (*.pth.tar) in it; start the training without --resume')
    print(found.path)
    return 0
