"""Opening a dataset: labels that cannot be the model's are refused, with the remedy."""

import pickle
import re
import tarfile

import pytest
from PIL import Image
from torch.utils.data import IterableDataset

from timm_drnet.data import datasets
from timm_drnet.data.datasets import open_labelled_images
from timm_drnet.data.labelled import DataError


@pytest.fixture
def folder(tmp_path):
    """Classes a, b and c of two images each."""
    root = tmp_path / 'data'
    for name in 'abc':
        (root / name).mkdir(parents=True)
        for i in range(2):
            Image.new('RGB', (8, 8)).save(root / name / f'{i}.png')
    return root


def open_labels(root, num_classes=3, **kwargs):
    """The label of every image."""
    images = open_labelled_images(str(root), num_classes, **kwargs)
    images.transform = lambda image: image
    return [images[i][1] for i in range(len(images))]


def refuse(match, root, num_classes=3, **kwargs):
    with pytest.raises(DataError, match=match) as caught:
        open_labelled_images(str(root), num_classes, **kwargs)
    assert '\n' not in str(caught.value)


def test_folder_per_class(folder):
    assert open_labels(folder) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(('name', 'split'), [('val', 'validation'), ('validation', 'validation'), ('test', 'test')])
def test_folder_of_the_split_is_found(folder, name, split):
    whole = folder.with_name('whole')
    (whole / 'train/z').mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(whole / 'train/z/0.png')
    folder.rename(whole / name)
    assert open_labels(whole, split=split) == [0, 0, 1, 1, 2, 2]


def test_tar_file(folder):
    tar = folder.with_suffix('.tar')
    with tarfile.open(tar, 'w') as file:
        file.add(folder, arcname='data')
    assert open_labels(tar) == [0, 0, 1, 1, 2, 2]
    refuse('of 3 classes, but the model has 4', tar, 4)


def test_torchvision_dataset(folder):
    assert open_labels(folder, name='torch/image_folder') == [0, 0, 1, 1, 2, 2]
    refuse('of 3 classes, but the model has 4', folder, 4, name='torch/image_folder')
    refuse('labels of its own', folder, name='torch/image_folder', class_map=str(class_map(folder, 'abc')))


def test_no_folder(folder):
    refuse('nowhere: no such folder', folder / 'nowhere')
    refuse('3: no such folder', folder / '3')


def test_no_image(folder):
    for path in folder.glob('*/*'):
        path.rename(path.with_suffix('.txt'))
    refuse(r'Found 0 images .* \.png, \.jpg', folder)
    refuse('Found 0 images', folder / 'a')


def test_images_without_a_class_folder(folder):
    refuse(re.escape(f'{folder / "a"}: images such as 0.png lie outside a class folder'), folder / 'a', 1)
    Image.new('RGB', (8, 8)).save(folder / 'stray.png')
    refuse('images such as stray.png lie outside', folder)
    refuse('images such as stray.png lie outside', folder, 4)


@pytest.mark.parametrize('num_classes', [2, 4, 1000])
def test_another_number_of_classes(folder, num_classes):
    refuse(f'of 3 classes, but the model has {num_classes}, .*--num-classes .*--class-map', folder, num_classes)


def class_map(folder, names):
    path = folder.with_name('classes.txt')
    path.write_text('\n'.join(names) + '\n')
    return path


def test_class_map_gives_the_labels(folder, caplog):
    assert open_labels(folder, 5, class_map=str(class_map(folder, 'xcyab'))) == [3, 3, 4, 4, 1, 1]
    assert not caplog.messages


def test_class_map_that_leaves_out_a_folder(folder, caplog):
    assert open_labels(folder, 2, class_map=str(class_map(folder, 'ca'))) == [1, 1, 0, 0]
    assert len(caplog.messages) == 1
    assert re.match('2 images are in folders that --class-map .* does not name', caplog.messages[0])


def test_class_map_for_another_model(folder):
    refuse(r"classes\.txt gives 'c' the label 2, but the 2 classes", folder, 2, class_map=str(class_map(folder, 'abc')))
    path = folder.with_name('classes.pkl')
    path.write_bytes(pickle.dumps({'a': 0, 'b': '1'}))
    refuse("gives 'b' the label '1'", folder, class_map=str(path))


def test_class_map_that_cannot_be_read(folder):
    refuse('--class-map nowhere.txt: No such file .*; give a text file', folder, class_map='nowhere.txt')
    path = class_map(folder, 'abc')
    refuse('Unsupported class map', folder, class_map=str(path.rename(path.with_suffix('.csv'))))
    refuse('--class-map .*: the file is empty', folder, class_map=str(class_map(folder, '\n')))
    path = class_map(folder, 'abc')
    path.write_bytes(b'\xff\xfea')
    refuse('--class-map .*: not a text file in UTF-8', folder, class_map=str(path))
    refuse('Found 0 images', folder, class_map=str(class_map(folder, 'xyz')))


def test_number_of_channels(folder):
    refuse('4 channels', folder, in_chans=4)


def test_unknown_dataset(folder):
    refuse('Unknown torchvision dataset nothing', folder, name='torch/nothing')


def test_stream(folder, monkeypatch):
    class Stream(IterableDataset):
        __iter__ = None

    monkeypatch.setattr(datasets, 'create_dataset', lambda *args, **kwargs: Stream())
    refuse('wds/x is read as a stream', folder, name='wds/x')
