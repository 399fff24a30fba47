"""From files and rows to what a model takes, in order and with a reason for what is unreadable."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from timm_drnet.bulk.decoding import Decoder, Rows
from timm_drnet.bulk.listing import Location
from timm_drnet.data.reading import image_loader

PHOTOS = sorted((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg'))
BINARY = pa.binary()
STRUCT = pa.struct({'bytes': pa.binary(), 'path': pa.string()})


@pytest.fixture
def numbered(tmp_path):
    """A Parquet file of 50 rows, in groups of 20, that hold their number."""
    path = tmp_path / 'numbered.parquet'
    pq.write_table(pa.table({'n': pa.array([str(n).encode() for n in range(50)], BINARY)}), path, row_group_size=20)
    return str(path)


@pytest.mark.parametrize('order', [
    range(50), range(3, 50, 7), [45, 0, 19, 20, 21, 39, 40, 49], [5, 5, 5], [41, 40], [49],
])
def test_rows_in_any_order(numbered, order):
    rows = Rows('n')
    assert [rows.read(numbered, n) for n in order] == [str(n).encode() for n in order]


def test_rows_are_read_once_where_they_follow_each_other(numbered, monkeypatch):
    opened = []
    original = pq.ParquetFile
    monkeypatch.setattr(pq, 'ParquetFile', lambda *args, **kwargs: opened.append(args) or original(*args, **kwargs))
    rows = Rows('n')
    for n in [*range(10), *range(15, 20), *range(30, 50), *range(30, 35)]:  # in groups 0, 0, 1 and 2, 1
        rows.read(numbered, n)
    assert len(opened) == 4


def test_row_beyond_the_end_does_not_end_the_others(numbered, tiny):
    decode = Decoder(image_loader(tiny), 'n')
    unreadable = 'not an image of a format that Pillow can read'
    for beyond in (50, 70):
        found = list(decode(Location(numbered, n) for n in (49, beyond, 1, beyond, 2)))
        assert found[0] == found[2] == found[4] == unreadable
        assert found[1] == found[3] == 'the Parquet file cannot be read: it has 50 rows, fewer than when the run' \
                                       ' began'


@pytest.mark.parametrize('threads', [1, 3])
@pytest.mark.parametrize('kind', [BINARY, STRUCT])
def test_rows_equal_files(tiny, tmp_path, kind, threads):
    grey = io.BytesIO()
    Image.new('L', (20, 30), 200).save(grey, 'PNG')
    encoded = [*(path.read_bytes() for path in PHOTOS[:5]), None, b'no image', b'', grey.getvalue()]
    values = encoded if kind == BINARY else [{'bytes': image, 'path': 'a.jpg'} for image in encoded]
    path = tmp_path / 'a.parquet'
    pq.write_table(pa.table({'label': [1] * 9, 'image': pa.array(values, kind)}), path, row_group_size=2)
    load = image_loader(tiny)
    decode = Decoder(load, 'image', threads)
    from_rows = list(decode(Location(str(path), n) for n in range(9)))
    (tmp_path / 'grey.png').write_bytes(grey.getvalue())
    files = [*PHOTOS[:5], tmp_path / 'grey.png', tmp_path / 'nowhere.png']
    from_files = list(decode(Location(str(file), None) for file in files))
    for file, found in zip(files[:6], from_files[:6], strict=True):
        assert torch.equal(found, load(file))
    for n, found in enumerate(from_files[:5]):
        assert torch.equal(found, from_rows[n])
    assert torch.equal(from_files[5], from_rows[8])
    assert from_rows[5:8] == [
        'the row holds no image', 'not an image of a format that Pillow can read', 'the image is empty']
    assert from_files[6] == 'No such file or directory'


@pytest.mark.parametrize('threads', [1, 2, 3])
def test_no_further_ahead_than_keeps_the_threads_busy(numbered, threads):
    opened, decoded = [], []

    class Watched(Rows):
        def read(self, path, row):
            opened.append(row)
            return super().read(path, row)

    decode = Decoder(lambda file: decoded.append(file) or torch.zeros(1), 'n', threads)
    decode._rows = Watched('n')
    stream = decode(Location(numbered, n) for n in range(50))
    for consumed in range(1, 20):
        next(stream)
        assert len(decoded) <= len(opened) <= consumed - 1 + 2 * threads
    stream.close() if threads > 1 else None
    assert len(opened) < 30


def test_damaged_rows_have_a_reason(numbered, tiny):
    data = bytearray(Path(numbered).read_bytes())
    data[4:40] = b'\xff' * 36  # the first page of the first group
    Path(numbered).write_bytes(data)
    first, last = Decoder(image_loader(tiny), 'n')([Location(numbered, 0), Location(numbered, 45)])
    assert first.startswith('the Parquet file cannot be read: ')
    assert last == 'not an image of a format that Pillow can read'
