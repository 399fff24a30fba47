"""The images of a bulk run: which they are, and in which order."""

import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from timm_drnet.bulk.listing import Location, list_inputs


def save_images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(folder / name)


def save_table(path, rows, column='image'):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: pa.array([b'x'] * rows, pa.binary())}), path)


@pytest.fixture
def inputs(tmp_path):
    """A folder of three images, one of two Parquet files, and a Parquet file; 3 + (2 + 0 + 4) + 1 images."""
    save_images(tmp_path / 'photos', 'b.jpg', 'a/c.png', 'd.jpg')
    save_table(tmp_path / 'tables' / '1.parquet', 2)
    save_table(tmp_path / 'tables' / '2.parquet', 0)
    save_table(tmp_path / 'tables' / 'more' / '3.parquet', 4)
    save_table(tmp_path / 'tables' / '_not_data.parquet', 5)
    save_table(tmp_path / 'one.parquet', 1)
    return [tmp_path / 'photos', tmp_path / 'tables', tmp_path / 'one.parquet']


@pytest.fixture
def expected(tmp_path):
    return [
        Location(str(tmp_path / 'photos/a/c.png'), None),
        Location(str(tmp_path / 'photos/b.jpg'), None),
        Location(str(tmp_path / 'photos/d.jpg'), None),
        Location(str(tmp_path / 'tables/1.parquet'), 0),
        Location(str(tmp_path / 'tables/1.parquet'), 1),
        *(Location(str(tmp_path / 'tables/more/3.parquet'), row) for row in range(4)),
        Location(str(tmp_path / 'one.parquet'), 0),
    ]


def test_order(inputs, expected):
    listing = list_inputs(inputs)
    assert len(listing) == 10
    assert list(listing.locations(0, 10)) == expected


def test_any_part(inputs, expected):
    listing = list_inputs(inputs)
    for start in range(10):
        for stop in range(start, 11):
            assert list(listing.locations(start, stop)) == expected[start:stop]


def test_each_image_once_and_wherever_it_is_listed_from(inputs, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = list_inputs(['photos', 'photos/b.jpg', 'tables', 'tables/1.parquet', 'one.parquet', *inputs])
    assert list(again.locations(0, len(again))) == expected
    assert again.fingerprint() == list_inputs(inputs).fingerprint()


def test_patterns(inputs, expected, tmp_path):
    listing = list_inputs([f'{tmp_path}/photos/**/*.jpg', f'{tmp_path}/tables/**/*.parquet'])
    assert list(listing.locations(0, 2)) == expected[1:3]
    assert listing.paths[2:] == tuple(
        str(tmp_path / 'tables' / name) for name in ('1.parquet', '2.parquet', '_not_data.parquet', 'more/3.parquet'))


def test_links_to_folders_are_followed_and_each_file_counts_once(inputs, tmp_path):
    farm = tmp_path / 'farm'
    farm.mkdir()
    for name, target in (('photos', 'photos'), ('tables', 'tables'), ('photos/up', 'photos'), ('tables/up', 'tables')):
        (farm / name).symlink_to(tmp_path / target, target_is_directory=True)
    tables = ['tables/1.parquet', 'tables/2.parquet', 'tables/more/3.parquet']
    for item in (farm / 'tables', farm / '**' / '[0-9]*.parquet'):
        assert [os.path.relpath(path, farm) for path in list_inputs([item]).paths] == tables
    listing = list_inputs([farm / 'photos', tmp_path / 'photos', farm / 'photos' / '*.jpg'])
    assert [os.path.relpath(path, farm) for path in listing.paths] == ['photos/a/c.png', 'photos/b.jpg', 'photos/d.jpg']


def test_fingerprint_sees_changes(inputs, tmp_path):
    seen = {list_inputs(inputs).fingerprint()}
    os.rename(tmp_path / 'photos/b.jpg', tmp_path / 'photos/bb.jpg')
    seen.add(list_inputs(inputs).fingerprint())
    save_table(tmp_path / 'tables' / '1.parquet', 3)
    seen.add(list_inputs(inputs).fingerprint())
    seen.add(list_inputs(inputs[::-1]).fingerprint())
    assert len(seen) == 4


@pytest.mark.parametrize('kind', ['binary', 'large_binary', 'struct'])
def test_columns_that_hold_images(tmp_path, kind):
    types = {
        'binary': pa.binary(), 'large_binary': pa.large_binary(),
        'struct': pa.struct({'bytes': pa.binary(), 'path': pa.string()})}
    pq.write_table(pa.table({'picture': pa.nulls(3, types[kind])}), tmp_path / 'a.parquet')
    assert len(list_inputs([tmp_path / 'a.parquet'], 'picture')) == 3


@pytest.mark.parametrize(('name', 'told'), [
    ('nowhere', 'no such file'),
    ('nowhere.parquet', 'no such Parquet file'),
    ('*/nowhere.parquet', 'no such Parquet file'),
    ('empty', 'no image and no Parquet file'),
    ('mixed', 'holds both images and Parquet files; say which with a pattern'),
    ('damaged.parquet', 'not a Parquet file'),
    ('other.parquet', "no column 'image'; name the column of images with --image-column.*'picture'"),
    ('text.parquet', "the column 'image' holds string; --image-column .* needs bytes"),
    ('no_rows.parquet', 'no rows'),
])
def test_bad_inputs(tmp_path, name, told):
    (tmp_path / 'empty').mkdir()
    save_images(tmp_path / 'mixed', 'a.jpg')
    save_table(tmp_path / 'mixed' / 'a.parquet', 1)
    (tmp_path / 'damaged.parquet').write_bytes(b'no table')
    save_table(tmp_path / 'other.parquet', 1, 'picture')
    pq.write_table(pa.table({'image': ['a.jpg']}), tmp_path / 'text.parquet')
    save_table(tmp_path / 'no_rows.parquet', 0)
    with pytest.raises((FileNotFoundError, ValueError), match=f'{re.escape(name)}: .*{told}') as error:
        list_inputs([tmp_path / name])
    assert '\n' not in str(error.value)


def test_name_that_is_no_text(tmp_path):
    try:
        save_images(tmp_path, 'odd\udcff.png')
    except (OSError, UnicodeError):
        pytest.skip('the file system has no such names')
    with pytest.raises(ValueError, match='not UTF-8; rename it'):
        list_inputs([tmp_path])
