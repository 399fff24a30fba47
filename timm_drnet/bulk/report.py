"""Report: what the shards of a bulk run say in all."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .shards import ShardFolder, shard_file


@dataclass(frozen=True)
class BulkReport:
    """What `classify_bulk` made. The numbers are those of all shards, whichever run made them."""

    folder: Path
    """Where the shards are."""
    images: int
    """Images in all shards, unreadable ones too."""
    unreadable: int
    """Images that could not be read; their rows say why."""
    shards: int
    """Number of shards."""
    counts: dict[int, int]
    """Readable images at each candidate resolution, largest first."""
    gflops: float
    """What was spent on all of them."""
    new_images: int
    """Images in the shards that this run made."""
    skipped_shards: int
    """Shards that were there before."""
    seconds: float
    """From the start of Ray to the end of this run's last shard; 0 if it made none."""
    working_seconds: float
    """The part of them since the first worker was given its first work."""
    replaced_workers: int
    """Workers that died at their work, which others then did."""

    def errors(self) -> Iterator[tuple[str, int | None, str]]:
        """Path, row and reason of each unreadable image."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        for shard in range(self.shards):
            table = pq.read_table(shard_file(self.folder, shard), columns=['path', 'row', 'error'])
            for row in table.filter(pc.is_valid(table['error'])).to_pylist():
                yield row['path'], row['row'], row['error']


def report_on(
        shards: ShardFolder,
        resolutions: tuple[int, ...],
        made: list[int],
        seconds: float,
        working_seconds: float,
        replaced_workers: int,
) -> BulkReport:
    """Sum up shards that are all there.

    Args:
        shards: The shards.
        resolutions: The candidates.
        made: The shards that this run made.
        seconds: That it took.
        working_seconds: Of these, since the first worker was given its first work.
        replaced_workers: Workers that died at their work.

    Returns:
        The sums.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    counts: Counter[Any] = Counter()
    gflops = 0.0
    unreadable = 0
    for shard in range(len(shards)):
        table = pq.read_table(shards.file(shard), columns=['resolution', 'gflops', 'error'])
        unreadable += len(table) - table['error'].null_count
        gflops += pc.sum(table['gflops']).as_py() or 0.0
        counts.update({row['values']: row['counts'] for row in pc.value_counts(table['resolution']).to_pylist()})
    spans = [shards.span(shard) for shard in made]
    return BulkReport(
        shards.path, shards.images, unreadable, len(shards), {r: counts[r] for r in resolutions}, gflops,
        sum(stop - start for start, stop in spans), len(shards) - len(made), seconds, working_seconds,
        replaced_workers)
