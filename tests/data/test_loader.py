"""From an image file to the input of a model."""

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

import timm_drnet
from timm_drnet.data.reading import image_loader, normalizer


def make_model(resolutions=(64, 48, 32), **kwargs):
    return timm_drnet.create_drnet(
        'resnet10t', resolutions=resolutions, num_classes=5, predictor='inverted_residual', **kwargs).eval()


def save(path, image):
    image.save(path)
    return path


@pytest.mark.parametrize('in_chans', [1, 3])
def test_loader_prepares_as_timm_does(tmp_path, in_chans):
    path = save(tmp_path / 'x.png', Image.effect_mandelbrot((90, 70), (-2, -1.5, 1, 1.5), 50).convert('RGB'))
    model = make_model(in_chans=in_chans)
    config = resolve_data_config({}, model=model)
    if in_chans == 1:
        config.update(input_size=(1, 64, 64), mean=(sum(config['mean']) / 3,), std=(sum(config['std']) / 3,))
    expected = create_transform(**config)(Image.open(path).convert('RGB' if in_chans == 3 else 'L'))
    assert expected.shape == (in_chans, 64, 64)
    torch.testing.assert_close(image_loader(model)(path), expected)
    pixels = image_loader(model, normalize=False)(path)
    assert pixels.dtype == torch.uint8
    assert torch.equal(normalizer(model, 'cpu')(pixels[None])[0], image_loader(model)(path))


def test_loader_uses_the_resolutions_that_the_model_was_created_with(tmp_path):
    path = save(tmp_path / 'x.png', Image.new('RGB', (40, 30)))
    assert image_loader(timm.create_model('drnet_resnet18d_050', resolutions=(160, 96)))(path).shape == (3, 160, 160)
    without_configuration = timm_drnet.DRNet(timm.create_model('resnet10t'), resolutions=(72, 48))
    assert image_loader(without_configuration)(path).shape == (3, 72, 72)


def test_loader_refuses_other_channels():
    with pytest.raises(ValueError, match='4 channels'):
        image_loader(make_model(in_chans=4))


@pytest.mark.parametrize('size', [(1, 1), (1, 60_000), (60_000, 1), (2_000_000, 3)])
def test_tiny_and_endless_images(tmp_path, size, monkeypatch):
    largest = []
    resize = Image.Image.resize

    def measured(self, size, *args, **kwargs):
        largest.append(size[0] * size[1])
        return resize(self, size, *args, **kwargs)

    path = save(tmp_path / 'x.png', Image.new('L', size, 200))
    monkeypatch.setattr(Image.Image, 'resize', measured)
    x = image_loader(make_model())(path)
    assert x.shape == (3, 64, 64)
    assert x.std(dim=(1, 2)).max() == pytest.approx(0, abs=1e-3)
    assert max(largest) < 1_000_000


def test_long_image_is_cropped_where_the_central_crop_looks(tmp_path):
    image = Image.new('RGB', (4000, 40), 'black')
    image.paste('white', (1980, 0, 2020, 40))  # what the crop is to show
    model = make_model()
    plain = create_transform(**resolve_data_config({}, model=model))(image)
    torch.testing.assert_close(image_loader(model)(save(tmp_path / 'x.png', image)), plain, atol=0.1, rtol=0)


def test_all_of_a_long_image_is_seen_when_it_is_squashed(tmp_path):
    image = Image.new('RGB', (4000, 40), 'black')
    image.paste('white', (0, 0, 1000, 40))
    model = make_model()
    model.pretrained_cfg['crop_mode'] = 'squash'
    x = image_loader(model)(save(tmp_path / 'x.png', image))
    assert x[:, :, :4].min() > x[:, :, -4:].max()
