"""Finding image files: names, folders and patterns."""

import os

import pytest
from PIL import Image

from timm_drnet.data.files import find_images, image_extensions


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of empty files, for finding looks at names only; it is the working directory."""
    names = (
        'b.jpg', 'a.PNG', 'notes.txt', 'weights.h5', '.hidden.jpg', 'sub/c.jpeg', 'sub/deep/d.tif', '.cache/e.jpg',
        'other/f.webp', 'empty/readme.md', 'we[ir]d.jpg')
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*inputs):
    return [path.as_posix() for path in find_images(inputs)]


def test_folder_is_searched_to_the_bottom_and_sorted(folder):
    assert found('.') == [
        'a.PNG', 'b.jpg', 'other/f.webp', 'sub/c.jpeg', 'sub/deep/d.tif', 'we[ir]d.jpg']


def test_inputs_keep_their_order(folder):
    assert found('sub', 'b.jpg', 'a.PNG') == ['sub/c.jpeg', 'sub/deep/d.tif', 'b.jpg', 'a.PNG']


def test_file_counts_once(folder):
    assert found('b.jpg', './b.jpg', '*.jpg', str(folder / 'b.jpg')) == ['b.jpg', 'we[ir]d.jpg']


def test_named_file_is_taken_whatever_its_extension(folder):
    assert found('notes.txt', '.hidden.jpg') == ['notes.txt', '.hidden.jpg']


@pytest.mark.parametrize(('pattern', 'expected'), [
    ('*.jpg', ['b.jpg', 'we[ir]d.jpg']),
    ('*', ['a.PNG', 'b.jpg', 'other/f.webp', 'sub/c.jpeg', 'sub/deep/d.tif', 'we[ir]d.jpg']),
    ('s*', ['sub/c.jpeg', 'sub/deep/d.tif']),
    ('**/[cd].*', ['sub/c.jpeg', 'sub/deep/d.tif']),
    ('sub/**', ['sub/c.jpeg', 'sub/deep/d.tif']),
])
def test_pattern(folder, pattern, expected):
    assert found(pattern) == expected


def test_name_that_looks_like_a_pattern_is_a_name_where_it_exists(folder):
    assert found('we[ir]d.jpg') == ['we[ir]d.jpg']


@pytest.mark.parametrize(('name', 'reason'), [
    ('nowhere.jpg', 'no such file or folder'),
    ('empty', 'no image in this folder'),
    ('*.bmp', 'no image matches'),
    ('*.txt', 'no image matches'),
])
def test_nothing_found_is_said_by_name(folder, name, reason):
    with pytest.raises(FileNotFoundError, match=reason) as error:
        find_images(['b.jpg', name])
    assert str(error.value).startswith(f'{name}: ')


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_pipe_is_refused(folder):
    os.mkfifo('pipe.jpg')
    with pytest.raises(FileNotFoundError, match='not a regular file'):
        find_images(['pipe.jpg'])


def test_extensions_are_of_formats_that_can_be_opened():
    extensions = image_extensions()
    assert {'.jpg', '.jpeg', '.png', '.gif', '.bmp', '.tif', '.webp'} <= extensions
    assert not {'.h5', '.hdf', '.grib', '.mpg', '.pdf'} & extensions
    assert all(Image.registered_extensions()[extension] in Image.OPEN for extension in extensions)
