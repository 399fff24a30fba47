"""Command lines: written with DATA and WORK for the two folders, as results tell them, and filled in to be run."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .configuration import Configuration, arguments

_BUDGET = ('batch_size', 'workers', 'crop_pct')  # the options of `validate` that `budget` has
_PROGRAM = 'import sys; from timm_drnet.cli import main; sys.exit(main())'


@dataclass(frozen=True)
class Places:
    """What differs from machine to machine."""

    train_script: Path
    """timm's train.py."""
    data: Path
    """Folder of the data set."""
    work: Path
    """Folder for checkpoints and logs."""

    def fill(self, command: Sequence[str]) -> list[str]:
        """A command that runs here.

        Args:
            command: As `train_command` or `validate_command` writes it.

        Returns:
            The same for this machine and this Python.
        """
        program = {'train.py': [str(self.train_script)], 'timm-drnet': ['-c', _PROGRAM]}[command[0]]
        return [sys.executable, *program, *map(self._fill, command[1:])]

    def _fill(self, argument: str) -> str:
        first, _, rest = argument.partition('/')
        if first not in ('DATA', 'WORK'):
            return argument
        return os.path.join(self.data if first == 'DATA' else self.work, rest) if rest else str(
            self.data if first == 'DATA' else self.work)

    def folder(self, configuration: Configuration, name: str, seed: int) -> Path:
        """Where train.py puts what it writes for one row and seed."""
        return self.work / configuration.name / f'seed{seed}' / name


def checkpoint_of(configuration: Configuration, name: str, seed: int) -> str:
    """A row's last checkpoint, below WORK."""
    return f'WORK/{configuration.name}/seed{seed}/{name}/last.pth.tar'


def train_command(configuration: Configuration, name: str, seed: int, resume: bool = False) -> list[str]:
    """The command that trains a row.

    Args:
        configuration: The configuration.
        name: The row.
        seed: Of train.py.
        resume: Whether to go on from the row's own checkpoint.

    Returns:
        The command, to be filled in.
    """
    row = configuration.rows[name]
    start = []
    if resume:
        start = ['--resume', checkpoint_of(configuration, name, seed)]
    elif row.start:
        start = ['--initial-checkpoint', checkpoint_of(configuration, row.start, seed)]
    return [
        'train.py', '--data-dir', 'DATA', *arguments(row.options), '--seed', str(seed), '--checkpoint-hist', '1',
        '--output', f'WORK/{configuration.name}/seed{seed}', '--experiment', name, *start,
    ]


def validate_command(configuration: Configuration, name: str, seed: int) -> list[str]:
    """The command that measures a DRNet; its checkpoint tells the arguments of the model.

    Args:
        configuration: The configuration.
        name: The row.
        seed: Of the row, and of the random router.

    Returns:
        The command, to be filled in.
    """
    return [
        *_measuring_command('validate', configuration, name, seed), '--seed', str(seed),
        *arguments(configuration.validate), '--output', f'WORK/{configuration.name}/seed{seed}/{name}/validation.json',
    ]


def budget_command(configuration: Configuration, name: str, seed: int, target: float) -> list[str]:
    """The command that turns a DRNet's dial, and measures it there.

    Args:
        configuration: The configuration.
        name: The row.
        seed: Of the row.
        target: Average in GFLOPs.

    Returns:
        The command, to be filled in.
    """
    options = {key: configuration.validate[key] for key in _BUDGET if key in configuration.validate}
    return [
        *_measuring_command('budget', configuration, name, seed), *arguments(options),
        '--target-gflops', str(target), '--json',
    ]


def _measuring_command(command: str, configuration: Configuration, name: str, seed: int) -> list[str]:
    options = configuration.rows[name].options
    return [
        'timm-drnet', command, options['model'], 'DATA',
        '--checkpoint', checkpoint_of(configuration, name, seed), '--num-classes', str(options['num_classes']),
    ]
