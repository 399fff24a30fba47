"""A folder per class: as timm reads it, and each folder once whatever links lead to it."""

import pytest
from timm.data import create_dataset

from timm_drnet.data.class_folders import ClassFolders, folder_of_split, read_class_map


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


@pytest.fixture
def root(tmp_path):
    """Classes of names whose order is not that of the letters, at two depths, with files that do not count."""
    return touch(
        tmp_path / 'data', 'n10/1.jpg', 'n10/10.JPG', 'n10/2.png', 'n9/a.jpeg', 'below/n100/x.jpg', 'n9/more/y.jpg',
        'n9/z.webp', 'n9/notes.txt', 'empty/notes.txt')


@pytest.mark.parametrize('class_map', [None, {'n10': 3, 'more': 0, 'others': 1}])
def test_same_images_and_labels_in_the_same_order_as_timm(root, class_map):
    theirs = create_dataset('', root=root, class_map=class_map).reader
    ours = ClassFolders(root, class_map)
    assert len(theirs) > 3
    assert ours.samples == theirs.samples
    assert ours.class_to_idx == theirs.class_to_idx
    for options in ({}, {'basename': True}, {'absolute': True}):
        assert ours.filenames(**options) == theirs.filenames(**options)
    file, label = ours[1]
    with file:
        assert (file.name, label) == theirs.samples[1]


@pytest.mark.parametrize('split', ['train', 'training', 'val', 'validation', 'eval', 'test', 'val[:10]', 'other'])
@pytest.mark.parametrize('folders', [('train', 'val'), ('training', 'evaluation', 'test'), ('validation', 'val')])
def test_folder_of_a_split_is_the_one_that_timm_takes(tmp_path, split, folders):
    root = touch(tmp_path, 'a/x.jpg', *(f'{folder}/a/x.jpg' for folder in folders))
    assert folder_of_split(root, split) == create_dataset('', root=root, split=split).reader.root


def test_links_are_followed_and_circles_end(root, tmp_path):
    data = tmp_path / 'data'
    (data / 'linked').symlink_to(tmp_path / 'elsewhere')
    touch(tmp_path / 'elsewhere', '0.jpg', '.0.jpg')
    for circle in ('n9/up', 'n10/up', 'below/n100/up'):  # timm would go through 2 ** 40 folders
        (data / circle).symlink_to(data)
    (data / 'again').symlink_to(data / 'n10')
    folders = ClassFolders(root)
    assert list(folders.class_to_idx) == ['linked', 'more', 'n9', 'n10', 'n100']
    assert sorted(folders.filenames(basename=True)) == ['0.jpg', '1.jpg', '10.JPG', '2.png', 'a.jpeg', 'x.jpg', 'y.jpg']


@pytest.mark.parametrize(('content', 'expected'), [
    (b'\xef\xbb\xbfllama\r\nca\xc3\xb1a\r\n', {'llama': 0, 'ca\u00f1a': 1}),
    (b' a b \nc\x0bd\n\n\n', {'a b': 0, 'c\x0bd': 1}),
    (b'', {}),
])
def test_class_map_is_read(tmp_path, content, expected):
    (tmp_path / 'map.txt').write_bytes(content)
    assert read_class_map(str(tmp_path / 'map.txt'), 'nowhere') == expected
    assert read_class_map('map.txt', str(tmp_path)) == expected
