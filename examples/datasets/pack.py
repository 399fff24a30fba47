"""Pack a folder of class folders as WebDataset shards or Parquet files, for timm's own readers of them.

    python examples/datasets/pack.py wds DATA OUT --splits train val --shards 16
    python examples/datasets/pack.py parquet DATA OUT --splits train val --shards 16

DATA/train/CLASS/*.jpg and so on; OUT is written whole or not at all. Image files are copied byte by byte. Labels are
those that timm gives to the folder. Each shard is a random sample of its split and as long as the others: timm shares
out whole shards, expects equal shares, and shuffles a stream only within a buffer.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetInfo, Features, Image, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from timm.data import create_dataset
from tqdm import tqdm
from webdataset import TarWriter

from timm_drnet.data.output_folder import check_output_folder, staged

ROW_GROUP = 100  # images, as on the Hugging Face Hub: what a reader must hold at once


class Split(NamedTuple):
    """One split of a data set."""

    name: str
    shards: list[list[tuple[str, int]]]
    """Path and label of each image of each shard."""

    @property
    def lengths(self) -> list[int]:
        """Number of images in each shard."""
        return [len(shard) for shard in self.shards]


def read_folder(data: Path, names: Sequence[str], shards: int) -> tuple[list[Split], list[str]]:
    """Share out the images of a folder of class folders.

    Args:
        data: The folder, with a subfolder for each split.
        names: Of the splits.
        shards: Into how many each split is divided.

    Returns:
        The splits, and the classes in the order of their labels.

    Raises:
        ValueError: If there are no images, fewer than shards, or not the same classes in each split.
    """
    splits: list[Split] = []
    label_of: dict[str, int] = {}
    for name in names:
        if not re.fullmatch(r'\w+', name) or 'tar' in name:  # datasets and timm would take it for a pattern
            raise ValueError(f"Invalid split {name}: use letters, digits and _, but not 'tar'; rename the folder.")
        folder = data / name
        if not folder.is_dir():
            raise ValueError(f'Invalid split {name}: there is no folder {folder}; name the folders with --splits.')
        try:
            reader = create_dataset('', root=str(folder), search_split=False).reader
        except RuntimeError as error:  # timm found no images, and says of which kinds
            raise ValueError(f'Invalid split {name}: {error}') from error
        if '' in reader.class_to_idx:
            raise ValueError(f'Invalid split {name}: {folder} has images outside of its class folders; move them.')
        label_of = label_of or reader.class_to_idx
        if differing := sorted({label for label, _ in label_of.items() ^ reader.class_to_idx.items()}):
            only = sorted(label_of.keys() ^ reader.class_to_idx.keys()) or differing
            raise ValueError(
                f'Invalid split {name}: its classes are not those of {names[0]}, so labels would not match;'
                f' {len(only)} differ, such as {only[0]}; give both the same class folders.')
        images = list(reader.samples)
        if not 0 < shards <= len(images):
            raise ValueError(f'Invalid shards {shards}: use 1 to {len(images)}, the number of images in {name}.')
        random.Random(0).shuffle(images)
        splits.append(Split(name, [images[n::shards] for n in range(shards)]))
    return splits, sorted(label_of, key=label_of.__getitem__)


def write_wds(folder: Path, splits: Sequence[Split], classes: Sequence[str], bar: Any) -> None:
    """Write tar files, and the _info.json that tells timm's reader how many images they have."""
    info = {}
    for split in splits:
        files = [f'{split.name}-{n:05d}.tar' for n in range(len(split.shards))]
        for file, shard in zip(files, split.shards, strict=True):
            with open(folder / file, 'wb') as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
                for n, (path, label) in enumerate(tick(shard, bar)):
                    # timm looks for jpg and png, not jpeg; a dot in the key would end it
                    kind = 'png' if path.lower().endswith('.png') else 'jpg'
                    image = Path(path).read_bytes()
                    writer.write({'__key__': f'{file[:-4]}-{n:06d}', kind: image, 'cls': str(label).encode()})
        info[split.name] = {
            'name': split.name, 'num_samples': sum(split.lengths), 'filenames': files, 'shard_lengths': split.lengths}
    text = json.dumps({'splits': info, 'classes': list(classes)}, indent=1)
    (folder / '_info.json').write_text(text + '\n', encoding='utf-8')


def write_parquet(folder: Path, splits: Sequence[Split], classes: Sequence[str], bar: Any) -> None:
    """Write Parquet files as the Hugging Face Hub has them, and the README.md that says how many images they have."""
    (folder / 'data').mkdir()
    features = Features({'image': Image(), 'label': ClassLabel(names=list(classes))})
    schema = features.arrow_schema
    infos = SplitDict()
    for split in splits:
        for n, shard in enumerate(split.shards):
            file = folder / 'data' / f'{split.name}-{n:05d}-of-{len(split.shards):05d}.parquet'
            with pq.ParquetWriter(file, schema) as writer:
                for start in range(0, len(shard), ROW_GROUP):
                    rows = [
                        {'image': {'bytes': Path(path).read_bytes(), 'path': Path(path).name}, 'label': label}
                        for path, label in tick(shard[start:start + ROW_GROUP], bar)]
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        infos.add(SplitInfo(split.name, num_examples=sum(split.lengths)))
    DatasetInfosDict({'default': DatasetInfo(features=features, splits=infos)}).write_to_directory(str(folder))


def tick(shard: Sequence[tuple[str, int]], bar: Any) -> Iterator[tuple[str, int]]:
    """The images of a shard, counted by a progress bar when they are done."""
    for item in shard:
        yield item
        bar.update()


def main(argv: Sequence[str] | None = None) -> int:
    """Pack; 2 if the input is bad."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    add = parser.add_argument
    add('format', choices=['wds', 'parquet'], help='WebDataset tar files, or Parquet files for Hugging Face datasets')
    add('data', metavar='DATA', type=Path, help='a folder that has one for each split, with one for each class in it')
    add('out', metavar='OUT', type=Path, help='a new folder')
    add('--splits', metavar='NAME', nargs='+', default=['train', 'val'], help='folders in DATA (%(default)s)')
    add('--shards', metavar='N', type=int, default=16, help='files for each split: a multiple of processes times'
        ' their workers (%(default)s)')
    args = parser.parse_args(argv)
    write = {'wds': write_wds, 'parquet': write_parquet}[args.format]
    try:
        out = check_output_folder(args.out)
        splits, classes = read_folder(args.data, args.splits, args.shards)
        total = sum(sum(split.lengths) for split in splits)
        with staged(out) as folder, tqdm(total=total, desc=args.format, unit='image', disable=None) as bar:
            write(folder, splits, classes, bar)
    except (ValueError, OSError) as error:
        print(f'pack.py: {error}', file=sys.stderr)
        return 2
    print(f'{out}: {total} images of {len(classes)} classes, {args.shards} files for each of {", ".join(args.splits)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
