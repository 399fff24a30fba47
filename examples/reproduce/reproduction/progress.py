"""What a run shows: what it is doing, how far it is, and about how long it will take."""

from collections.abc import Iterable

from tqdm import tqdm

from .configuration import Row


class Progress:
    """Of all trainings of a run.

    Args:
        total: Number of steps of the whole plan, those done included.
        left: The rows still to train, one for each seed, with the epochs that each lacks.
        seconds: Seconds and epochs known from earlier trainings, by what an epoch does (`Row.work`).
    """

    def __init__(
            self,
            total: int,
            left: Iterable[tuple[Row, int]],
            seconds: dict[str, tuple[float, int]],
    ) -> None:
        self._total = total
        self._left = list(left)
        self._seconds = dict(seconds)
        self._label = ''
        self._row: Row | None = None
        self._bar: tqdm | None = None

    def begin(self, number: int, row: Row, seed: int, epochs_done: int) -> None:
        """A training starts, or goes on."""
        self._label = f'[{number}/{self._total}] {row.name}, seed {seed}'
        self._row = row
        goes_on = f', going on after epoch {epochs_done}' if epochs_done else ''
        epochs = f'{row.epochs} epoch{"" if row.epochs == 1 else "s"}'
        self.say(f'training for {epochs}{goes_on}; {self._time_left(epochs_done)}')
        self._bar = tqdm(
            total=row.epochs, initial=epochs_done, desc=self._label, unit='epoch', leave=False, disable=None,
            bar_format='{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} epochs [{elapsed}]')

    def advance(self, epochs: float) -> None:
        """The training in progress has come this far."""
        if self._bar is not None:
            self._bar.n = epochs
            self._bar.refresh()

    def epoch_ended(self, number: int, seconds: float, top1: float | None) -> None:
        """An epoch is over.

        Args:
            number: Of the epoch, counted from 1.
            seconds: It took.
            top1: Per cent, if known.
        """
        assert self._row is not None
        known, epochs = self._seconds.get(self._row.work, (0.0, 0))
        self._seconds[self._row.work] = known + seconds, epochs + 1
        accuracy = '' if top1 is None else f', top-1 {top1:.2f} %'
        self.say(f'epoch {number} of {self._row.epochs}{accuracy}, {seconds:.0f} s; {self._time_left(number)}')

    def end(self) -> None:
        """The training in progress is over, or was interrupted."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._left:
            self._left.pop(0)

    def note(self, number: int, row: Row, seed: int, text: str) -> None:
        """Tell something of another step."""
        self._label = f'[{number}/{self._total}] {row.name}, seed {seed}'
        self.say(text)

    def say(self, text: str) -> None:
        """Print a line about the present step, above the bar if there is one."""
        line = f'{self._label}: {text}'
        if self._bar is not None and not self._bar.disable:
            self._bar.write(line)
        else:
            print(line, flush=True)

    def _time_left(self, epochs_done: int) -> str:
        """Of all trainings, from the pace of epochs of the same work; others are taken to go at the average pace."""
        paces = {work: seconds / epochs for work, (seconds, epochs) in self._seconds.items() if epochs}
        if not paces:
            return 'time left is known after the first epoch'
        average = sum(paces.values()) / len(paces)
        left = 0.0
        for i, (row, epochs) in enumerate(self._left):
            left += (row.epochs - epochs_done if i == 0 else epochs) * paces.get(row.work, average)
        return f'about {duration(left)} left'


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02} min'
