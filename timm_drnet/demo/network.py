"""The model behind the page: all that it says of photographs, what it saw of them, and how long it took.

Every photograph is asked at every resolution, so that the slider needs no second run. One photograph at a time runs, in
whatever thread: visitors who come at once wait for each other, and nobody's time is measured while another one's runs.
"""

import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ..cascade.climb import climb
from ..core.norm import resize
from ..cost.flops import cost_table
from ..data.labels import labels_for
from ..data.reading import Unreadable, data_config, image_loader, read_batches
from ..deploy.deployed import DeployedDRNet
from ..deploy.stopwatch import seconds_of
from ..evaluate.answers import Answers, choose, collect_answers
from ..evaluate.prediction import Prediction, Predictions
from ..model import DRNet
from .dial import Dial
from .pictures import pixels_as_png

_BATCH = 8
"""Photographs that run at once: a visitor waits for no more of another one's."""
_ROUNDS = 7
_STEADY = 1.25
"""Where the quartiles of a time are further apart than this, other work disturbed it."""


@dataclass(frozen=True)
class Times:
    """Milliseconds for one photograph alone, medians of runs that took turns."""

    stopped: tuple[float | None, ...]
    """Until it stops at each resolution, largest first, every smaller rung or the predictor included; None where no
    image stops."""
    full: float
    """The plain backbone at the largest resolution."""
    steady: bool
    """Whether the runs were about alike."""


@dataclass(frozen=True, eq=False)
class Album:
    """What the model says about some photographs."""

    paths: tuple[Path, ...]
    """Those that could be read."""
    answers: Answers | None
    """Answers of the readable photographs at every resolution; None if there is none."""
    unreadable: tuple[Unreadable, ...] = ()
    """The other files."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """What is known of one photograph."""

    path: Path
    """The file."""
    answers: Answers
    """What the model answers at every resolution, for this one image."""
    seen: tuple[str, ...]
    """What the network saw at each resolution, largest first: PNGs as data URIs."""
    times: Times
    """How long it takes."""


class Network:
    """A model, ready for visitors.

    Args:
        model: A DRNet with a classifier, in eval mode, on the device to use.
        labels: One for each class, or None for the model's own.

    Raises:
        ValueError: If the model has no classifier, chooses nothing, or takes neither RGB nor grey images.
    """

    def __init__(self, model: DRNet, labels: Sequence[str] | None = None) -> None:
        self.labels = labels_for(model, labels)
        """Name of each class."""
        self.dial = Dial(model)
        """The slider."""
        self.resolutions = model.resolutions
        """Candidate sides in pixels, largest first."""
        self.full_flops = cost_table(model)[0].backbone_flops
        """FLOPs of the plain backbone at the largest resolution."""
        self._model = model
        self._load = image_loader(model)
        self._config = data_config(model)
        self._engine = _fast(model)
        self._turn = threading.Lock()

    def look(self, path: str | Path) -> Photograph:
        """Look at one photograph.

        Args:
            path: An image file.

        Returns:
            All about it.

        Raises:
            UnreadableImageError: If it cannot be read.
            ValueError: If the model gives scores that are not finite.
        """
        x = self._batch([self._load(path)])
        with self._turn:
            answers = collect_answers(self._model, [x])
            times = self._measure(x)
        return Photograph(Path(path), answers, self._seen(x), times)

    def look_at_all(self, paths: Sequence[str | Path]) -> Album:
        """Look at several photographs.

        Args:
            paths: Image files.

        Returns:
            The answers, in the order of the files.

        Raises:
            ValueError: If the model gives scores that are not finite.
        """
        unreadable: list[Unreadable] = []
        read: list[Path] = []
        found: list[Answers] = []
        for batch in read_batches(paths, self._load, _BATCH, unreadable):
            x = self._batch([image for _, image in batch])
            with self._turn:
                found.append(collect_answers(self._model, [x]))
            read += [path for path, _ in batch]
        return Album(tuple(read), join(found) if found else None, tuple(unreadable))

    def predict(self, album: Album, position: float) -> Predictions:
        """What the model says at a position of the dial.

        Args:
            album: The photographs.
            position: In per cent.

        Returns:
            The same as `predict_images` with the model at that position.
        """
        costs = self.dial.paid(position)
        images = []
        if album.answers is not None:
            choice = choose(self.dial.turn(position), album.answers).tolist()
            for i, (path, j) in enumerate(zip(album.paths, choice, strict=True)):
                classes, probabilities = album.answers.classes[i, j].tolist(), album.answers.probabilities[i, j]
                images.append(Prediction(
                    path, tuple(self.labels[k] for k in classes), tuple(probabilities.tolist()), self.resolutions[j],
                    costs[self.resolutions[j]]))
        return Predictions(tuple(images), album.unreadable, costs, self.full_flops, self._config['crop_pct'])

    def agreement(self, answers: Answers, position: float) -> int:
        """How many photographs get the answer of the largest resolution.

        Args:
            answers: Of the photographs.
            position: In per cent.
        """
        choice = choose(self.dial.turn(position), answers)
        first = answers.classes[:, :, 0]
        return int((first.gather(1, choice[:, None])[:, 0] == first[:, 0]).sum())

    def _batch(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        weight = next(self._model.parameters())
        return torch.stack(list(images)).to(weight.device, weight.dtype)

    @torch.inference_mode()
    def _measure(self, x: torch.Tensor) -> Times:
        """Time every way that a photograph can take, in turn with the plain backbone, by the same engine."""
        ways: dict[int | None, Callable[[], object]] = {
            j: partial(self._stop_at, x, j) for j, used in enumerate(self.dial.stops) if used}
        ways[None] = partial(self._engine.forward_at, x, 0)
        rounds = [{j: seconds_of(way, x.device) for j, way in ways.items()} for _ in range(1 + _ROUNDS)][1:]
        median = {j: 1e3 * statistics.median(seconds[j] for seconds in rounds) for j in ways}  # the first warmed up
        low, _, high = statistics.quantiles([seconds[None] for seconds in rounds], n=4)
        return Times(
            tuple(median.get(j) for j in range(len(self.resolutions))), median[None], high <= _STEADY * low)

    def _stop_at(self, x: torch.Tensor, j: int) -> object:
        """Run as the model does for a photograph that stops at a resolution, whatever this one would do."""
        if not self.dial.is_threshold:
            self._engine.predict_resolution(x)
            return self._engine.forward_at(x, j)
        thresholds = [(0.0 if k == j else 2.0) if used else None for k, used in enumerate(self.dial.stops)]
        return climb(x, thresholds[1:], lambda k, part: self._engine.forward_at(part, k))

    def _seen(self, x: torch.Tensor) -> tuple[str, ...]:
        mean, std = (torch.tensor(self._config[key], device=x.device)[:, None, None] for key in ('mean', 'std'))
        return tuple(pixels_as_png(resize(x, r)[0].float() * std + mean) for r in self.resolutions)


def join(answers: Sequence[Answers]) -> Answers:
    """The answers of several photographs as one."""
    scores = [one.scores for one in answers if one.scores is not None]
    return Answers(
        None, torch.cat(scores) if scores else None, torch.cat([one.classes for one in answers]),
        torch.cat([one.probabilities for one in answers]))


def _fast(model: DRNet) -> DRNet | DeployedDRNet:
    try:
        return model.deploy(micro_batch=_BATCH)
    except (ValueError, RuntimeError):  # not every backbone can be folded
        return model
