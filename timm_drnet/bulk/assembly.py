"""Assembly: answers come in any order; a shard is complete when each of its images has exactly one."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .listing import Listing
from .shards import ShardFolder
from .tables import read_columns

COLUMNS = (
    'path', 'row', 'label', 'class_index', 'probability', 'resolution', 'gflops', 'top_labels', 'top_class_indices',
    'top_probabilities', 'error')
"""Of the output, beside those that are carried over from the input."""


@dataclass(frozen=True)
class Meaning:
    """What the numbers in the workers' answers stand for."""

    labels: Sequence[str]
    """Of each class."""
    resolutions: Sequence[int]
    """Of each choice, in pixels."""
    gflops: Sequence[float]
    """Of each choice, for one image."""
    topk: int
    """Labels for each image."""


class Assembly:
    """Puts answers together to shards.

    Args:
        shards: Where they will be.
        listing: The images.
        meaning: Of the answers.
        carried: A pyarrow.Schema of the columns that go from Parquet files into the shards; None for none.
    """

    def __init__(self, shards: ShardFolder, listing: Listing, meaning: Meaning, carried: Any = None) -> None:
        self._shards = shards
        self._listing = listing
        self._meaning = meaning
        self._carried = carried
        self._parts: dict[int, list[Any]] = defaultdict(list)
        self.began = math.inf
        """When the first of them was given its first work, in seconds since 1970."""

    def add(self, answers: Any) -> Iterator[tuple[int, Any]]:
        """Take in some answers.

        Args:
            answers: A pyarrow.Table from a worker.

        Yields:
            Each shard that is now complete, and its pyarrow.Table.

        Raises:
            OSError: If a Parquet file whose columns are carried over can no longer be read.
            RuntimeError: If there is a second answer for an image.
            ValueError: If the model's scores are not finite.
        """
        import numpy as np

        self.began = min(self.began, answers['began'][0].as_py())
        shards = answers['position'].to_numpy() // self._shards.shard_size
        for shard in np.unique(shards).tolist():
            parts = self._parts[shard]
            parts.append(answers.filter(shards == shard))
            start, stop = self._shards.span(shard)
            if sum(map(len, parts)) >= stop - start:
                yield shard, self._complete(start, stop, self._parts.pop(shard))

    def check_nothing_is_left(self) -> None:
        """Make sure that there is no incomplete shard.

        Raises:
            RuntimeError: If there is.
        """
        if self._parts:
            raise RuntimeError(f'Some answers for the shards {sorted(self._parts)} never came; run the same again.')

    def _complete(self, start: int, stop: int, parts: list[Any]) -> Any:
        """The rows of a shard, in the order of the images."""
        import numpy as np
        import pyarrow as pa

        answers = pa.concat_tables(parts).sort_by('position')
        if not np.array_equal(answers['position'].to_numpy(), np.arange(start, stop)):
            raise RuntimeError(f'Images {start} to {stop - 1} did not get one answer each; run the same again.')
        locations = list(self._listing.locations(start, stop))
        return pa.table({
            'path': pa.array([location.path for location in locations], pa.string()),
            'row': pa.array([location.row for location in locations], pa.int64()),
            **self._carry(start, stop),
            **self._columns(answers, locations),
            'error': answers['error'],
        })

    def _carry(self, start: int, stop: int) -> dict[str, Any]:
        if not self._carried:
            return {}
        table = read_columns(self._listing.parts(start, stop), self._carried)
        return dict(zip(table.column_names, table.columns, strict=True))

    def _columns(self, answers: Any, locations: list[Any]) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        classes, probabilities = answers['classes'].combine_chunks(), answers['probabilities'].combine_chunks()
        best = pc.list_element(probabilities, 0)
        damaged = pc.index(pc.is_finite(best), False).as_py()
        if damaged >= 0:
            raise ValueError(
                f'The model gives scores for {locations[damaged].path} that are not finite: its weights are damaged.')
        labels = pa.array(self._meaning.labels, pa.string())
        choice = answers['choice']
        columns = {
            'label': labels.take(pc.list_element(classes, 0)),
            'class_index': pc.list_element(classes, 0),
            'probability': best,
            'resolution': pa.array(self._meaning.resolutions, pa.int32()).take(choice),
            'gflops': pa.array(self._meaning.gflops, pa.float64()).take(choice),
        }
        if self._meaning.topk > 1:
            names = [None if row is None else [self._meaning.labels[i] for i in row] for row in classes.to_pylist()]
            columns |= {
                'top_labels': pa.array(names, pa.list_(pa.string())),
                'top_class_indices': classes,
                'top_probabilities': probabilities,
            }
        return columns
