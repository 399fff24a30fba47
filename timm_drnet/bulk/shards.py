"""Shards: the Parquet files of a bulk run, each of them there as a whole or not at all.

A run that was broken off, however, leaves whole shards, so that the next one need only make those that are missing.
Ray Data's own checkpoints would know the images that are done, but not put them into files of a known content.
"""

from pathlib import Path
from typing import Any

from ..data.output_folder import staged_file


def shard_file(folder: Path, shard: int) -> Path:
    """Where a shard of a folder is, or will be."""
    return folder / f'shard-{shard:05d}.parquet'


class ShardFolder:
    """A folder of shards: shard k holds the images from number ``k * shard_size``.

    Args:
        path: The folder.
        images: Number of all images.
        shard_size: Images in a shard; the last may have fewer.
    """

    def __init__(self, path: Path, images: int, shard_size: int) -> None:
        self.path = path
        self.images = images
        self.shard_size = shard_size

    def __len__(self) -> int:
        """Number of shards when all are there."""
        return -(-self.images // self.shard_size)

    def file(self, shard: int) -> Path:
        """Where a shard is, or will be."""
        return shard_file(self.path, shard)

    def span(self, shard: int) -> tuple[int, int]:
        """The number of a shard's first image, and the number after its last."""
        return shard * self.shard_size, min(self.images, (shard + 1) * self.shard_size)

    def missing(self) -> list[int]:
        """Shards that are not there.

        Raises:
            ValueError: If one that is there is damaged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        missing = []
        for shard in range(len(self)):
            file, (start, stop) = self.file(shard), self.span(shard)
            try:
                rows = pq.read_metadata(file).num_rows
            except FileNotFoundError:
                missing.append(shard)
                continue
            except pa.ArrowInvalid:
                rows = None
            if rows != stop - start:
                raise ValueError(f'Invalid output {self.path}: {file.name} is damaged; delete this file and run again.')
        return missing

    def write(self, shard: int, table: Any) -> None:
        """Put a shard into its place, on the disk and not only on its way there.

        Args:
            shard: Its number.
            table: A pyarrow.Table of its rows.
        """
        import pyarrow.parquet as pq

        with staged_file(self.file(shard), durable=True) as file:
            pq.write_table(table, file, compression='zstd')
