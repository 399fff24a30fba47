"""Workers: what runs in the processes of a bulk run, on the tables that pass between them.

A worker decodes what it classifies, which keeps every core busy without moving pixels between processes. Where workers
have accelerators, those must not wait for Pillow, so decoders of their own go before them.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..core.drnet import DRNet
from ..data.pixels import REDUCING_GAP, first_line, ignore_warnings
from ..data.reading import image_loader, normalizer
from .decoding import Decoder
from .engine import start_engine
from .grouping import classify_grouped
from .listing import Location

_NO_ROW = -1  # of an image file: Ray may turn a column with nulls into one of floating point


def work_unit(first: int, locations: Iterable[Location]) -> dict[str, Any]:
    """One row of the table that a run begins with: some images with consecutive numbers.

    Args:
        first: The first number.
        locations: Where they are.

    Returns:
        The row.
    """
    places = list(locations)
    return {
        'first': first,
        'paths': [place.path for place in places],
        'rows': [_NO_ROW if place.row is None else place.row for place in places],
    }


class DecodingWorker:
    """Decodes images for workers that do not.

    Args:
        model: A reference to the model in Ray's object store.
        attempts: The actor that counts them, see `Attempts`.
        column: Column of Parquet files that holds the images.
        threads: Cores to use.
        reducing_gap: Of `image_loader`.
    """

    def __init__(
            self,
            model: Any,
            attempts: Any,
            column: str,
            threads: int,
            reducing_gap: float | None = REDUCING_GAP,
    ) -> None:
        import ray

        ignore_warnings()
        torch.set_num_threads(threads)
        self._attempts = attempts
        with _telling(attempts, 'a worker could not start'):
            load = image_loader(ray.get(model), normalize=False, reducing_gap=reducing_gap)
            self._decode = Decoder(load, column, threads)

    def __call__(self, units: Any) -> Iterator[dict[str, Any]]:
        """Decode units of work, a table.

        Yields:
            For each, numbers, reasons why images are unreadable ('' where they are not), and pixels, uint8.
        """
        import numpy as np

        for first, locations in _units(units):
            images = _images(first, len(locations), locations)
            _begin(self._attempts, f'decode {first}', images)
            with _telling(self._attempts, f'images {images}'):
                decoded = list(self._decode(locations))
            shape = next((image.shape for image in decoded if isinstance(image, torch.Tensor)), (0,))
            blank = torch.zeros(shape, dtype=torch.uint8)
            yield {
                'position': np.arange(first, first + len(decoded)),
                'error': np.array([image if isinstance(image, str) else '' for image in decoded], dtype=object),
                'pixels': torch.stack([blank if isinstance(image, str) else image for image in decoded]).numpy(),
            }


class ClassifyingWorker:
    """Holds one model that is ready to run and classifies images.

    Args:
        model: A reference to the model in Ray's object store.
        attempts: The actor that counts them, see `Attempts`.
        column: Column of Parquet files that holds the images.
        topk: Labels for each image.
        batch_size: Images that the predictor, or a branch, runs on at once.
        threads: Cores to use.
        device: Where the model runs.
        engine: A reference to the engine's name and files, see `engine_files`; None for a deployed model.
        reducing_gap: Of `image_loader`.
    """

    _takes_pixels = False

    def __init__(
            self,
            model: Any,
            attempts: Any,
            column: str,
            topk: int,
            batch_size: int,
            threads: int,
            device: str,
            engine: Any = None,
            reducing_gap: float | None = REDUCING_GAP,
    ) -> None:
        import ray

        ignore_warnings()
        torch.set_num_threads(threads)  # Ray says one, by OMP_NUM_THREADS, where a worker has not just that many
        with _telling(attempts, 'a worker could not start'):
            original: DRNet = ray.get(model)
            self._decode = Decoder(image_loader(original, reducing_gap=reducing_gap), column, threads)
            self._normalize = normalizer(original, device) if self._takes_pixels else None
            name, files = ('deployed', None) if engine is None else ray.get(engine)
            self._model = start_engine(name, original, files, threads, device)
        self._attempts = attempts
        self._topk, self._batch_size, self._device = topk, batch_size, device
        self._began = 0.0

    def __call__(self, units: Any) -> Iterator[Any]:
        """Decode and classify units of work, a table.

        Yields:
            A table for each, see `_answers`.
        """
        for first, locations in _units(units):
            yield self._work(list(range(first, first + len(locations))), self._decode(locations), locations)

    def _work(
            self,
            positions: list[int],
            images: Iterable[torch.Tensor | str],
            locations: Sequence[Location] = (),
    ) -> Any:
        """Classify images, with word of it before the first is taken and after what fails."""
        self._began = self._began or time.time()
        names = _images(positions[0], len(positions), locations)
        _begin(self._attempts, f'classify {positions[0]}', names)
        with _telling(self._attempts, f'images {names}'):
            return self._classify(positions, images)

    def _classify(self, positions: list[int], images: Iterable[torch.Tensor | str]) -> Any:
        errors: list[str | None] = []

        def readable() -> Iterator[torch.Tensor]:
            for image in images:
                errors.append(image if isinstance(image, str) else None)
                if isinstance(image, torch.Tensor):
                    yield image

        stream = readable()
        head = next(stream, None)
        if head is None:  # nothing to classify
            return _answers(positions, errors, [], [], [], self._began)
        choices, logits = classify_grouped(
            self._model, itertools.chain([head], stream), self._batch_size, self._device, self._normalize)
        best = logits.softmax(dim=1).topk(self._topk, dim=1)
        return _answers(
            positions, errors, choices.tolist(), best.indices.tolist(), best.values.tolist(), self._began)


class DecodedClassifyingWorker(ClassifyingWorker):
    """Classifies what a `DecodingWorker` decoded."""

    _takes_pixels = True

    def __call__(self, batch: dict[str, Any]) -> Iterator[Any]:
        """Classify a batch of decoded images.

        Yields:
            A table, see `_answers`.
        """
        positions = [int(n) for n in batch['position']]
        pixels = (
            error or torch.from_numpy(image.copy())
            for error, image in zip(batch['error'], batch['pixels'], strict=True))
        yield self._work(positions, pixels)


def _images(first: int, number: int, locations: Sequence[Location]) -> str:
    """How to name some images to the user."""
    where = f', from {locations[0].path} on' if locations else ''
    return f'{first} to {first + number - 1} of the inputs{where}'


def _begin(attempts: Any, work: str, images: str) -> None:
    import ray

    ray.get(attempts.begin.remote(work, images))


@contextmanager
def _telling(attempts: Any, where: str) -> Iterator[None]:
    """Tell why the run will end if what is done here fails."""
    import ray

    try:
        yield
    except Exception as error:
        remedy = '; use a smaller batch size' if isinstance(error, (MemoryError, torch.OutOfMemoryError)) else ''
        ray.get(attempts.fail.remote(f'{where}: {type(error).__name__}: {first_line(error)}{remedy}'))
        raise


def _units(units: Any) -> Iterator[tuple[int, list[Location]]]:
    for unit in units.to_pylist():
        yield unit['first'], [
            Location(path, None if row == _NO_ROW else row)
            for path, row in zip(unit['paths'], unit['rows'], strict=True)]


def _answers(
        positions: list[int],
        errors: list[str | None],
        choices: list[int],
        classes: list[list[int]],
        probabilities: list[list[float]],
        began: float,
) -> Any:
    """A table with one row for each image: its number, and either what the model says about it or why nothing.

    Args:
        positions: Numbers of N images.
        errors: For each, why it is unreadable, or None.
        choices: Index of the resolution of each that is readable.
        classes: Their most probable classes, best first.
        probabilities: Of these.
        began: When this worker was given its first work, in seconds since 1970.

    Returns:
        A pyarrow.Table.
    """
    import pyarrow as pa

    answers = iter(zip(choices, classes, probabilities, strict=True))
    rows = [(None, None, None) if error is not None else next(answers) for error in errors]
    return pa.table({
        'position': pa.array(positions, pa.int64()),
        'choice': pa.array([row[0] for row in rows], pa.int32()),
        'classes': pa.array([row[1] for row in rows], pa.list_(pa.int32())),
        'probabilities': pa.array([row[2] for row in rows], pa.list_(pa.float32())),
        'error': pa.array(errors, pa.string()),
        'began': pa.array([began] * len(rows), pa.float64()),
    })
