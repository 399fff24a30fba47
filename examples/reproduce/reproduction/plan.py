"""The plan: every row of the first seed, then of the next, each behind the row that it starts from."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoints import settle
from .commands import Places, train_command, validate_command
from .configuration import Configuration, UserError
from .files import alone_in, read_json
from .measuring import measure
from .progress import Progress
from .results import has_result
from .trainings import Training


@dataclass
class Step:
    """One row for one seed, as it stands when a run begins."""

    training: Training
    """What train.py did of it so far."""
    measured: bool
    """Whether its result is there."""
    needed: bool
    """Whether something is left to do, for itself or for a row that starts from it."""

    @property
    def status(self) -> str:
        """For people."""
        if self.measured:
            return 'measured'
        if self.training.finished:
            return 'trained, not measured' if self.training.row.measured else 'trained'
        if not self.needed:
            return 'not needed'
        if self.training.epochs:
            return f'interrupted after epoch {self.training.epochs} of {self.training.row.epochs}'
        return 'to do'


def select(given: Sequence[str] | Sequence[int] | None, known: Sequence[str] | Sequence[int], option: str) -> list[Any]:
    """The rows or seeds to work on, in the configuration's order.

    Raises:
        UserError: If one is unknown.
    """
    for one in given or ():
        if one not in known:
            raise UserError(f'{option} {one}: use of {", ".join(map(str, known))}')
    return [one for one in known if not given or one in given]


def make_plan(
        configuration: Configuration,
        places: Places,
        results: Path,
        rows: Sequence[str],
        seeds: Sequence[int],
) -> list[Step]:
    """See what is there and what is left to do.

    Args:
        configuration: The configuration.
        places: Folders of this machine.
        results: Folder of all results.
        rows: To measure; those that they start from come with them.
        seeds: To train with.

    Returns:
        The steps in order, those that are done included.

    Raises:
        UserError: If a result or a training was made with other options.
    """
    wanted = {one.name for name in rows for one in configuration.chain(name)}
    steps: list[Step] = []
    for seed in seeds:
        of_seed: dict[str, Step] = {}
        for name, row in configuration.rows.items():
            if name in wanted:
                measured = row.measured and has_result(results, configuration, name, seed)
                of_seed[name] = Step(
                    Training(configuration, name, seed, places), measured,
                    needed=not measured if row.measured else name in rows)
        for name in reversed(of_seed):  # a row stands behind the one it starts from
            step = of_seed[name]
            start = step.training.row.start
            if start is not None and step.needed and not step.training.epochs:
                of_seed[start].needed = True
        steps += of_seed.values()
    return steps


def show_plan(configuration: Configuration, steps: Sequence[Step]) -> None:
    """Print every step's status and commands."""
    for number, step in enumerate(steps, 1):
        name, seed = step.training.row.name, step.training.seed
        print(f'[{number}/{len(steps)}] {name}, seed {seed}: {step.status}')
        print('    ' + ' '.join(train_command(configuration, name, seed)))
        if step.training.row.kind == 'drnet' and step.training.row.measured:
            print('    ' + ' '.join(validate_command(configuration, name, seed)))


def run_plan(
        configuration: Configuration,
        places: Places,
        results: Path,
        rows: Sequence[str],
        seeds: Sequence[int],
) -> None:
    """Train and measure what is left to do.

    Args:
        configuration: The configuration.
        places: Folders of this machine.
        results: Folder of all results.
        rows: As for `make_plan`.
        seeds: As for `make_plan`.

    Raises:
        UserError: As `make_plan`, and if another run is at work in the same folder.
        TrainingFailed: If a training or measurement fails.
    """
    with ExitStack() as stack:
        lock = stack.enter_context(alone_in(places.work / configuration.name))
        steps = make_plan(configuration, places, results, rows, seeds)
        for step in steps:
            settle(step.training.folder)
        todo = [step.training for step in steps if step.needed and not step.training.finished]
        progress = Progress(
            len(steps), [(one.row, one.row.epochs - one.epochs) for one in todo], _known_seconds(configuration, places))
        print(f'{configuration.name}: {_count(steps)}', flush=True)
        for number, step in enumerate(steps, 1):
            training = step.training
            if not step.needed:
                continue
            if not training.finished:
                training.run(number, progress, lock)
            if training.row.measured and not step.measured:
                top1, by_train = measure(training, results, lock)
                step.measured = True
                progress.note(
                    number, training.row, training.seed,
                    f'measured, top-1 {top1:.2f} % (train.py: {by_train:.2f} %); {_count(steps)}')


def _count(steps: Sequence[Step]) -> str:
    there, all_of_them = sum(one.measured for one in steps), sum(one.training.row.measured for one in steps)
    return f'{there} of {all_of_them} results are there'


def _known_seconds(configuration: Configuration, places: Places) -> dict[str, tuple[float, int]]:
    """Seconds and epochs of all trainings in the work folder, by what an epoch does."""
    known: dict[str, tuple[float, int]] = {}
    for path in (places.work / configuration.name).glob('seed*/*/reproduce.json'):
        row = configuration.rows.get(path.parent.name)
        state = read_json(path)
        if row is not None:
            seconds, epochs = known.get(row.work, (0.0, 0))
            known[row.work] = seconds + state['seconds'], epochs + state['epochs']
    return known
