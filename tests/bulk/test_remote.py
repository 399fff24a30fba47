"""Images and Parquet files at addresses, held against the same on the disk."""

import re
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from timm_drnet.bulk.decoding import Decoder
from timm_drnet.bulk.listing import Location, list_inputs
from timm_drnet.bulk.tables import read_columns
from timm_drnet.data.reading import image_loader

PHOTOS = sorted((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg'))


@pytest.fixture
def bucket(tmp_path):
    """Photographs and Parquet files in memory; a folder on the disk holds the same."""
    folder = tmp_path / 'bucket'
    names = ('photos/b.jpg', 'photos/more/a[1].JPG', 'photos/.hidden/c.jpg', 'photos/notes.txt', 'odd/photo')
    for name, photo in zip(names, PHOTOS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo.read_bytes())
    for n, name in enumerate(('tables/1.parquet', 'tables/more/2.parquet', 'tables/_not_data.parquet')):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        images = [path.read_bytes() for path in PHOTOS[4 * n:4 * n + 4]]
        table = pa.table({'image': pa.array(images, pa.binary()), 'id': [10 * n + i for i in range(4)]})
        pq.write_table(table, folder / name, row_group_size=3)
    memory = fsspec.filesystem('memory')
    memory.store.clear()
    memory.pseudo_dirs.clear()
    memory.put(f'{folder}/', '/bucket/', recursive=True)
    yield folder
    memory.store.clear()
    memory.pseudo_dirs.clear()


@pytest.mark.parametrize('names', [
    ['photos'], ['photos/**/*.JPG'], ['photos/more/a[1].JPG', 'photos'], ['odd/photo'], ['tables'],
    ['tables/**/*.parquet'], ['photos/*'], ['tables/1.parquet', 'photos', 'tables'],
])
def test_addresses_mean_what_paths_mean(bucket, names):
    here = list_inputs([bucket / name for name in names])
    for prefix in ('memory://bucket/', bucket.as_uri() + '/'):
        there = list_inputs([prefix + name for name in names])
        assert [path.removeprefix('memory:///bucket/') for path in there.paths] == [
            path.removeprefix('' if 'file' in prefix else f'{bucket}/') for path in here.paths]
        assert list(there.tables.values()) == list(here.tables.values())


def test_images_and_columns_are_those_of_the_disk(bucket, tiny):
    load = image_loader(tiny)
    listing = list_inputs(['memory://bucket/tables', 'memory://bucket/photos'])
    assert len(listing) == 10
    expected = [
        *(load(path) for path in PHOTOS[:8]), load(bucket / 'photos/b.jpg'), load(bucket / 'photos/more/a[1].JPG')]
    for threads in (1, 2):
        found = list(Decoder(load, 'image', threads)(listing.locations(0, 10)))
        assert len(found) == 10
        assert all(map(torch.equal, found, expected))
    columns = read_columns(listing.parts(2, 9), pa.schema([('id', pa.int64())]))
    assert columns['id'].to_pylist() == [2, 3, 10, 11, 12, 13, None]


@pytest.mark.parametrize('threads', [1, 2])
def test_what_is_gone_is_unreadable_and_a_fault_of_the_network_is_not(bucket, tiny, monkeypatch, threads):
    decode = Decoder(image_loader(tiny), 'image', threads)
    gone, there = Location('memory:///bucket/gone.jpg', None), Location('memory:///bucket/photos/b.jpg', None)
    assert next(decode([gone, there])) == 'No such file or directory'
    memory = type(fsspec.filesystem('memory'))

    def fail(*args, **kwargs):
        raise TimeoutError('no answer')

    monkeypatch.setattr(memory, 'cat_file', fail)
    monkeypatch.setattr(memory, 'open', fail)
    for location in (there, Location('memory:///bucket/tables/1.parquet', 0)):
        with pytest.raises(OSError, match=re.escape(f'{location.path}: cannot be read (no answer)')):
            next(decode([location]))


@pytest.mark.parametrize(('address', 'error', 'told'), [
    ('memory://bucket/nowhere', FileNotFoundError, 'no file there'),
    ('memory://bucket/nowhere/*.jpg', FileNotFoundError, 'no file there'),
    ('memory://bucket/photos/*.txt', FileNotFoundError, 'no image and no Parquet file among the 1 files there'),
    ('memory://bucket', ValueError, 'holds both images and Parquet files; say which with a pattern'),
    ('s3://bucket/photos', ImportError, 's3:// needs another package .*: pip install s3fs'),
    ('gs://bucket/photos', ImportError, 'gs:// needs another package .*: pip install gcsfs'),
    ('nowhere://bucket', ValueError, 'no address that fsspec can read'),
    ('simplecache::memory://bucket/photos', ValueError, 'addresses within others'),
])
def test_bad_addresses(bucket, monkeypatch, address, error, told):
    for scheme, package in (('s3', 's3fs'), ('gs', 'gcsfs')):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules['fsspec.registry']._registry, scheme, raising=False)
    with pytest.raises(error, match=f'{re.escape(address)}: .*{told}') as raised:
        list_inputs([address])
    assert '\n' not in str(raised.value)


def test_address_that_may_not_be_read(bucket, monkeypatch):
    def fail(*args, **kwargs):
        raise PermissionError('Access Denied')

    monkeypatch.setattr(type(fsspec.filesystem('memory')), 'find', fail)
    with pytest.raises(OSError, match=r'memory://bucket/photos: cannot be read \(Access Denied\); check the address'):
        list_inputs(['memory://bucket/photos'])
