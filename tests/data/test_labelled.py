"""Reading labelled images: every one of them is read or named, and none stands in for another."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.datasets import ImageFolder

import timm_drnet
from timm_drnet.data.datasets import open_labelled_images
from timm_drnet.data.labelled import DataError, LabelledImages, make_loader
from timm_drnet.data.reading import data_config

CONFIG = {
    'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'mean': (0.0,) * 3, 'std': (1.0,) * 3, 'crop_pct': 1.0,
    'crop_mode': 'center',
}


def save_image(path, value, mode='RGB'):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (40, 32), value).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of four images, each of one grey of its own."""
    for i in range(8):
        save_image(tmp_path / 'ab'[i // 4] / f'{i}.png', (20 * i,) * 3)
    return tmp_path


def read(images, batch_size=3, workers=0):
    """The grey of every image that was read, and its label."""
    batches = list(images.batches(make_loader(images, CONFIG, batch_size, workers)))
    return [
        (round(255 * x.mean().item()), label)
        for batch, target in batches for x, label in zip(batch, target.tolist(), strict=True)
    ]


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_images_are_named_and_not_replaced(folder, workers):
    (folder / 'a/1.png').write_bytes((folder / 'a/1.png').read_bytes()[:60])
    (folder / 'b/4.png').write_text('no image')
    (folder / 'b/6.png').write_bytes(b'')
    (folder / 'b/7.png').unlink()
    (folder / 'b/7.png').symlink_to('nowhere.png')
    images = open_labelled_images(str(folder), num_classes=2)
    assert read(images, workers=workers) == [(0, 0), (40, 0), (60, 0), (100, 1)]
    assert [name for name, _ in images.unreadable] == ['a/1.png', 'b/4.png', 'b/6.png', 'b/7.png']
    assert all(reason for _, reason in images.unreadable)


def test_a_batch_of_unreadable_images_only(folder):
    for path in (folder / 'a').iterdir():
        path.write_text('no image')
    images = open_labelled_images(str(folder), num_classes=2)
    assert read(images, batch_size=2) == [(80, 1), (100, 1), (120, 1), (140, 1)]
    assert len(images.unreadable) == 4
    assert len(read(images)) == 4
    assert len(images.unreadable) == 4  # not those of both readings


def test_nothing_readable(folder):
    for path in folder.glob('*/*'):
        path.write_text('no image')
    with pytest.raises(DataError, match=r'none of 8 images is readable; the first is a.0\.png \(not an image'):
        read(open_labelled_images(str(folder), num_classes=2))


def test_a_mistake_in_the_preparation_is_no_unreadable_image(folder):
    images = open_labelled_images(str(folder), num_classes=2)
    loader = make_loader(images, CONFIG, batch_size=3)
    images.transform = None
    with pytest.raises(AssertionError):
        next(images.batches(loader))


def test_limit(folder):
    assert read(open_labelled_images(str(folder), num_classes=2, limit=5)) == [
        (0, 0), (20, 0), (40, 0), (60, 0), (80, 1)]
    assert len(open_labelled_images(str(folder), num_classes=2, limit=100)) == 8


def test_torchvision_dataset(folder):
    (folder / 'b/5.png').write_text('no image')
    images = LabelledImages(ImageFolder(folder), 'RGB')
    assert read(images)[3:] == [(60, 0), (80, 1), (120, 1), (140, 1)]
    assert [name for name, _ in images.unreadable] == ['b/5.png']


@pytest.mark.parametrize('kind', ['files', 'images'])
def test_dataset_of_others_is_read_alike(tmp_path, kind):
    """What torchvision itself does with 16-bit grey, all values above 255 white, must not be seen."""
    (tmp_path / 'a').mkdir()
    Image.fromarray(np.full((32, 32), 100 * 257, np.uint16)).save(tmp_path / 'a/0.png')
    dataset = ImageFolder(tmp_path) if kind == 'files' else [(Image.open(tmp_path / 'a/0.png'), 0)]
    images = LabelledImages(dataset, 'RGB')
    assert read(images) == [(100, 0)]
    assert images.name(0) == ('a/0.png' if kind == 'files' else 'image 0')


def test_long_image_takes_little_memory(tmp_path):
    save_image(tmp_path / 'a/0.png', 90, 'L')
    Image.new('L', (1, 50_000), 60).save(tmp_path / 'a/1.png')
    images = open_labelled_images(str(tmp_path), num_classes=1)
    assert read(images) == [(90, 0), (60, 0)]
    assert images.read(1)[0].size == (1, 16)
    make_loader(images, CONFIG, 2, is_training=True)
    assert images.read(1)[0].size == (1, 50_000)  # the training may crop any part of it


@pytest.mark.parametrize(('mode', 'value'), [('L', 90), ('P', 90), ('RGBA', (90, 90, 90, 255)), ('1', 1)])
@pytest.mark.parametrize('in_chans', [1, 3])
def test_images_of_other_modes(tmp_path, mode, value, in_chans):
    save_image(tmp_path / 'a/0.png', value, mode)
    images = open_labelled_images(str(tmp_path), num_classes=1, in_chans=in_chans)
    config = {**CONFIG, 'input_size': (in_chans, 32, 32), 'mean': (0.0,) * in_chans, 'std': (1.0,) * in_chans}
    (batch, _), = images.batches(make_loader(images, config, batch_size=2))
    assert batch.shape == (1, in_chans, 32, 32)


def test_images_are_prepared_as_timm_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (90, 120, 3), generator=generator, dtype=torch.uint8).numpy()
    (tmp_path / 'a').mkdir()
    Image.fromarray(pixels).save(tmp_path / 'a/0.png')
    model = timm_drnet.create_drnet('resnet10t', resolutions=(64, 48, 32), num_classes=1)
    images = open_labelled_images(str(tmp_path), num_classes=1)
    (batch, _), = images.batches(make_loader(images, data_config(model), batch_size=2))
    expected = create_transform(64, interpolation='bicubic', crop_pct=0.875)(Image.fromarray(pixels))
    assert torch.equal(batch[0], expected)


def test_configuration_follows_the_model_as_it_was_created():
    model = timm_drnet.create_drnet('resnet10t', resolutions=(64, 48), in_chans=1)
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (3, 96, 96)}
    config = data_config(model, crop_pct=0.75)
    assert config['input_size'] == (1, 64, 64)
    assert config['crop_pct'] == 0.75
    assert config['mean'] == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    assert config['std'] == (pytest.approx((0.229 + 0.224 + 0.225) / 3),)
