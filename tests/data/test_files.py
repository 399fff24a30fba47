"""Finding image files: names, folders and patterns."""

import glob
import os
from pathlib import Path

import pytest
from PIL import Image

from timm_drnet.data.files import find_images, image_extensions, matches, unique, walk


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


@pytest.fixture
def farm(folder):
    """Links to a folder outside, to one inside by a name that sorts first, and two that go in circles."""
    farm = folder / 'farm'
    (farm / 'real').mkdir(parents=True)
    (farm / 'real' / 'x.jpg').touch()
    (farm / 'real' / 'y.jpg').symlink_to(farm / 'real' / 'x.jpg')
    for name, target in (('away', 'sub'), ('aware', 'farm/real'), ('real/up', 'farm'), ('real/round', 'farm')):
        (farm / name).symlink_to(folder / target, target_is_directory=True)
    (farm / 'nowhere').symlink_to('nothing')
    return farm


@pytest.mark.parametrize('pattern', ['farm', 'farm/**', 'f*/**/*.*', 'farm/**/**'])
def test_links_to_folders_are_followed_and_each_file_counts_once(farm, pattern):
    assert found(pattern) == ['farm/away/c.jpeg', 'farm/away/deep/d.tif', 'farm/real/x.jpg', 'farm/real/y.jpg']


def test_file_counts_once_whatever_link_leads_to_it(farm):
    assert found('farm/away', 'sub', 'farm/real/up/real/x.jpg', 'farm/aware/*.jpg') == [
        'farm/away/c.jpeg', 'farm/away/deep/d.tif', 'farm/real/up/real/x.jpg', 'farm/aware/y.jpg']
    assert unique(['farm/aware/x.jpg', 'farm/real/x.jpg', 'farm/real/y.jpg']) == [
        Path('farm/aware/x.jpg'), Path('farm/real/y.jpg')]


def test_each_folder_is_gone_through_once(farm):
    folders = [path for path, _ in walk('farm')]
    assert folders == ['farm', 'farm/real', 'farm/away', 'farm/away/deep']
    assert 'sub/deep' not in [path for path, _ in walk('.', hidden=('.', 'd'))]
    with pytest.raises(FileNotFoundError):
        list(walk('nowhere'))


def test_pattern_matches_what_glob_matches(folder):
    for pattern in ('**/*.jp*g', 'sub/**/*', '**/deep/*', '*/**/*.tif', '**/sub/**/*', '**/*d[.]*', 'no/**/*', '*'):
        expected = {os.path.normpath(path) for path in glob.glob(pattern, recursive=True)}
        assert {os.path.normpath(path) for path in matches(pattern)} == expected
        absolute = os.path.join(glob.escape(str(folder)), pattern)
        assert {os.path.relpath(path) for path in matches(absolute)} == expected


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
