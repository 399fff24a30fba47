"""Columns that go from Parquet files into the output."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timm_drnet.bulk.assembly import COLUMNS
from timm_drnet.bulk.listing import list_inputs
from timm_drnet.bulk.tables import carried_columns, read_columns


@pytest.fixture
def save(tmp_path):
    """Function that writes a Parquet file with two rows to a group, and returns its path."""
    def save(name, **columns):
        rows = max(map(len, columns.values()))
        table = pa.table({'image': pa.array([b''] * rows, pa.binary()), **columns})
        pq.write_table(table, tmp_path / name, row_group_size=2)
        return tmp_path / name

    return save


def carry(listing, names=None):
    return carried_columns(listing.schemas(), 'image', names, COLUMNS)


def test_rows_of_several_files(save, tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(b'')
    listing = list_inputs([
        save('a.parquet', id=[0, 1, 2, 3, 4], text=['a', 'b', 'c', 'd', 'e']),
        tmp_path / 'photo.jpg',
        save('b.parquet', id=pa.nulls(2), tags=[['x'], []]),
        save('c.parquet', id=[6])])
    schema = carry(listing)
    assert schema == pa.schema([('id', pa.int64()), ('text', pa.string()), ('tags', pa.list_(pa.string()))])
    expected = [
        *({'id': n, 'text': 'abcde'[n], 'tags': None} for n in range(5)), {'id': None, 'text': None, 'tags': None},
        {'id': None, 'text': None, 'tags': ['x']}, {'id': None, 'text': None, 'tags': []},
        {'id': 6, 'text': None, 'tags': None}]
    for start in range(9):
        for stop in range(start + 1, 10):
            table = read_columns(listing.parts(start, stop), schema)
            assert table.schema == schema
            assert table.to_pylist() == expected[start:stop]
    assert carry(listing, ['tags', 'id']).names == ['id', 'tags']
    assert carry(listing, []).names == []


@pytest.mark.parametrize(('columns', 'names', 'told'), [
    ({'label': [1]}, None, r"b\.parquet: the column 'label' is called as one of the output; rename it, or .*--columns"),
    ({'top_labels': [1]}, None, "the column 'top_labels' is called as one of the output"),
    ({'id': ['x']}, None, r"b\.parquet: the column 'id' holds string, and int64 in another file; give them one type"),
    ({'id': [1.5]}, ['id'], r"b\.parquet: the column 'id' holds double, and int64 in another file"),
    ({'text': ['x']}, ['text', 'name'], r"no input has 'name' \(--columns\); there are 'id', 'text'"),
    ({'label': [1]}, ['image'], r"no input has 'image' \(--columns\); there are 'id', 'label'"),
])
def test_columns_that_cannot_be_carried_over(save, columns, names, told):
    listing = list_inputs([save('a.parquet', id=[0]), save('b.parquet', **columns)])
    with pytest.raises(ValueError, match=told):
        carry(listing, names)


def test_two_columns_of_one_name(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([b'']), pa.array([1]), pa.array([2])], ['image', 'a', 'a']),
                   tmp_path / 'a.parquet')
    listing = list_inputs([tmp_path / 'a.parquet'])
    with pytest.raises(ValueError, match="several columns 'a'"):
        carry(listing)
    assert carry(listing, []).names == []


def test_file_that_changed_meanwhile(save):
    listing = list_inputs([save('a.parquet', id=[0, 1, 2])])
    schema = carry(listing)
    path = save('a.parquet', id=[0])
    with pytest.raises(OSError, match=f'{path}: its columns cannot be read any more .it has 1 rows, fewer than when'):
        read_columns(listing.parts(0, 3), schema)
    path.unlink()
    with pytest.raises(OSError, match='its columns cannot be read any more'):
        read_columns(listing.parts(0, 3), schema)
