"""One training: timm's train.py in a process of its own, resumed where it was interrupted.

Whether a training is finished is told by its checkpoint alone: interrupted from the keyboard, train.py exits with 0.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .checkpoints import epochs_done, read_summary, settle
from .commands import Places, train_command
from .configuration import Configuration, UserError
from .files import read_json, write_json
from .progress import Progress

_STATE = 'reproduce.json'
LOG = 'train.log'
_TRAIN = re.compile(r'Train: (\d+) \[\s*(\d+)/(\d+) ')
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class TrainingFailed(Exception):
    """train.py or a measurement ended without what it should have made."""


class Training:
    """One row for one seed.

    Args:
        configuration: The configuration.
        name: The row.
        seed: Of train.py.
        places: Folders of this machine.

    Raises:
        UserError: If its folder belongs to other options.
    """

    def __init__(self, configuration: Configuration, name: str, seed: int, places: Places) -> None:
        self.configuration = configuration
        self.row = configuration.rows[name]
        self.seed = seed
        self.places = places
        self.folder = places.folder(configuration, name, seed)
        self.fingerprint = configuration.training_fingerprint(name, seed)
        self.state: dict[str, Any] = {
            'fingerprint': self.fingerprint, 'starts': 0, 'seconds': 0.0, 'processor_seconds': 0.0, 'epochs': 0}
        if (self.folder / _STATE).exists():
            self.state = read_json(self.folder / _STATE)
            if self.state.get('fingerprint') != self.fingerprint:
                raise UserError(
                    f'{self.folder}: trained with other options than those of row {name!r} in'
                    f' {configuration.name}.yaml now; delete this folder to train it again, or undo the change')
        elif self.folder.exists() and any(self.folder.glob('*.pth.tar')):
            raise UserError(
                f'{self.folder}: holds checkpoints but no {_STATE}, so nobody knows how they were trained; delete this'
                ' folder, or use another --work')
        self.epochs = epochs_done(self.folder) if self.state['starts'] else 0

    @property
    def finished(self) -> bool:
        """Whether the last epoch's checkpoint is there."""
        return self.epochs >= self.row.epochs

    def run(self, number: int, progress: Progress, lock: int) -> None:
        """Train to the end.

        Args:
            number: Of the step, for the progress.
            progress: Told about every epoch.
            lock: File descriptor that holds the folder, for the child process.

        Raises:
            TrainingFailed: If train.py ends before the last epoch.
        """
        self.epochs = settle(self.folder)
        command = train_command(self.configuration, self.row.name, self.seed, resume=self.epochs > 0)
        self.state['starts'] += 1
        self._keep(self.epochs, 0.0)  # the time of an interrupted epoch is lost, and not counted
        progress.begin(number, self.row, self.seed, self.epochs)
        started = reached = time.monotonic()
        before = self.state['seconds']
        worked = _processor_seconds()
        current = self.epochs  # the epoch in progress, counted from 0

        def read(line: str) -> None:
            nonlocal current, reached
            match = _TRAIN.search(line)
            if match is None:
                return
            epoch, update, updates = map(int, match.groups())
            while current < epoch:  # it began: the one before it is over and saved
                current += 1
                self._ended(current, reached, before + time.monotonic() - started, progress)
                reached = time.monotonic()
            progress.advance(epoch + (update + 1) / updates)

        try:
            code = run_logged(
                self.places.fill(command), self.folder / LOG, self.configuration.environment, lock, read)
            self.epochs = settle(self.folder)
            if self.epochs > current:
                self._ended(self.epochs, reached, before + time.monotonic() - started, progress)
        finally:
            progress.end()
            self.state['processor_seconds'] = self.state.get('processor_seconds', 0.0) + _processor_seconds() - worked
            self._keep(self.epochs, 0.0)
        if not self.finished:
            raise TrainingFailed(
                f'train.py ended with exit code {code} after {self.epochs} of {self.row.epochs} epochs of'
                f' {self.row.name}, seed {self.seed}; {_tail(self.folder / LOG)}')

    def _ended(self, epochs: int, since: float, seconds: float, progress: Progress) -> None:
        """Keep and tell that an epoch is over."""
        self._keep(epochs, seconds)
        results = {one.epoch: one.top1 for one in read_summary(self.folder)}
        progress.epoch_ended(epochs, time.monotonic() - since, results.get(epochs - 1))

    def _keep(self, epochs: int, seconds: float) -> None:
        self.state['epochs'] = epochs
        self.state['seconds'] = seconds or self.state['seconds']
        write_json(self.folder / _STATE, self.state)


def run_logged(
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        lock: int,
        read: Callable[[str], None] = lambda line: None,
) -> int:
    """Run a command to its end with its output in a file; it ends with this process, however that ends.

    Args:
        command: The command.
        log: File that its output is added to.
        environment: Variables beyond those of this process.
        lock: File descriptor that it inherits.
        read: Called with every line of output.

    Returns:
        The exit code.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == 'linux' else None

    def end_with_parent() -> None:
        if prctl is not None:
            prctl(_DIES_WITH_PARENT, signal.SIGKILL)

    with log.open('a', encoding='utf-8') as file:
        file.write(f'$ {" ".join(command)}\n')
        file.flush()
        # A process group of its own: Ctrl-C stops it through this process, which knows where it is.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding='utf-8', errors='replace', env={**os.environ, **environment, 'PYTHONUNBUFFERED': '1'},
            process_group=0, pass_fds=(lock,), preexec_fn=end_with_parent)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                read(line)
            return process.wait()
        finally:
            if process.poll() is None:
                for number in (signal.SIGTERM, signal.SIGKILL):
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(10)
            process.stdout.close()


def _processor_seconds() -> float:
    """Of all processes that this one has waited for, those that read images included."""
    import resource  # not on Windows, where only the report can be made

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _tail(log: Path, lines: int = 5) -> str:
    """Where the log is, and what it says last."""
    last = log.read_text(encoding='utf-8', errors='replace').splitlines()[-lines:]
    return f'the log {log} ends with:\n' + '\n'.join(f'    {line}' for line in last)
