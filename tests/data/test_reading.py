"""Reading images of every mode, size and condition."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from timm_drnet.data.reading import UnreadableImageError, open_image


def gradient(width=40, height=30):
    ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    return Image.fromarray(np.stack([ramp, ramp[::-1, ::-1], np.full_like(ramp, 128)], axis=-1))


def save(path, image, **kwargs):
    image.save(path, **kwargs)
    return path


def assert_close(image, expected, tolerance):
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(expected, dtype=int))
    assert image.size == expected.size
    assert difference.max() <= tolerance


@pytest.mark.parametrize(('mode', 'name', 'tolerance'), [
    ('RGB', 'x.png', 0),
    ('RGB', 'x.bmp', 0),
    ('RGBA', 'x.png', 0),
    ('CMYK', 'x.tif', 0),
    ('CMYK', 'x.jpg', 12),
    ('YCbCr', 'x.tif', 3),
    ('LAB', 'x.tif', 24),  # sRGB values outside Pillow's 8-bit LAB are lost
    ('P', 'x.png', 40),  # the palette
])
def test_colour_modes(tmp_path, mode, name, tolerance):
    image = gradient()
    if mode == 'LAB':
        stored = ImageCms.profileToProfile(
            image, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB')
    elif mode == 'P':
        stored = image.quantize(64)
    else:
        stored = image.convert(mode)
    path = save(tmp_path / name, stored)
    with Image.open(path) as reopened:
        assert reopened.mode in {mode, 'RGB'}  # older releases of Pillow turn YCbCr into RGB
    read = open_image(path)
    assert read.mode == 'RGB'
    assert_close(read, image, tolerance)
    assert_close(open_image(path, 'L'), image.convert('L'), tolerance)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA'])
def test_grey_modes(tmp_path, mode):
    grey = gradient().convert('L').convert('1' if mode == '1' else 'L')
    read = open_image(save(tmp_path / 'x.png', grey.convert(mode)))
    assert read.mode == 'RGB'
    assert_close(read, grey.convert('RGB'), 0)


@pytest.mark.parametrize(('dtype', 'white', 'name'), [
    (np.uint16, 65535, 'x.png'),
    (np.uint16, 65535, 'x.tif'),
    (np.int32, 65535, 'x.tif'),
    (np.int32, 2_000_000, 'x.tif'),
    (np.float32, 1, 'x.tif'),
    (np.float32, 255, 'x.tif'),
])
def test_deep_grey_keeps_its_range(tmp_path, dtype, white, name):
    grey = np.asarray(gradient().convert('RGB').getchannel('R'))
    image = Image.fromarray((grey * (white / 255)).astype(dtype))
    read = open_image(save(tmp_path / name, image))
    assert_close(read, Image.fromarray(grey).convert('RGB'), 1)


def test_not_a_number_is_black(tmp_path):
    values = np.array([[np.nan, 0.5, 1, np.inf]], dtype=np.float32)
    read = open_image(save(tmp_path / 'x.tif', Image.fromarray(values)), 'L')
    assert np.asarray(read).tolist() == [[0, 128, 255, 0]]


def test_transparency_is_laid_over_white(tmp_path):
    image = Image.new('RGBA', (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 127)])
    assert np.asarray(open_image(save(tmp_path / 'x.png', image))).tolist() == [
        [[255, 0, 0], [255, 255, 255], [128, 128, 128]]]


def test_transparency_of_grey_and_of_palettes(tmp_path):
    grey = Image.new('LA', (2, 1), (0, 255))
    grey.putpixel((1, 0), (0, 0))
    assert np.asarray(open_image(save(tmp_path / 'la.png', grey), 'L')).tolist() == [[0, 255]]
    palette = Image.new('P', (2, 1), 0)
    palette.putpalette([0, 0, 255, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    for name in ('p.png', 'p.gif'):
        path = save(tmp_path / name, palette, transparency=1)
        assert np.asarray(open_image(path)).tolist() == [[[0, 0, 255], [255, 255, 255]]]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    marked = Image.new('RGB', (40, 24), 'white')
    marked.paste('black', (0, 0, 20, 8))  # upper left once it is upright
    transposes = Image.Transpose
    stored = {
        1: marked, 2: marked.transpose(transposes.FLIP_LEFT_RIGHT), 3: marked.transpose(transposes.ROTATE_180),
        4: marked.transpose(transposes.FLIP_TOP_BOTTOM), 5: marked.transpose(transposes.TRANSPOSE),
        6: marked.transpose(transposes.ROTATE_90), 7: marked.transpose(transposes.TRANSVERSE),
        8: marked.transpose(transposes.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_close(open_image(save(tmp_path / 'x.png', stored, exif=exif)), marked, 0)


def test_damaged_exif_does_not_cost_the_image(tmp_path):
    path = save(tmp_path / 'x.png', gradient(), exif=b'Exif\0\0 no TIFF header')
    assert_close(open_image(path), gradient(), 0)


@pytest.mark.parametrize('name', ['x.gif', 'x.webp', 'x.png'])
def test_animation_shows_its_first_frame(tmp_path, name):
    frames = [Image.new('RGB', (20, 10), colour) for colour in ('red', 'blue', 'lime')]
    options = {'lossless': True} if name.endswith('webp') else {}
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    assert_close(open_image(path), frames[0], 0)


def png_header(width, height):
    """A PNG that declares a size and holds next to nothing."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


@pytest.mark.parametrize(('content', 'reason'), [
    pytest.param(b'', 'empty', id='empty'),
    pytest.param(b'hello, world', 'not an image', id='text'),
    pytest.param(png_header(40, 30), r'truncated|broken|not enough|unrecognized', id='header'),
    pytest.param(png_header(10_000, 9_000), r'90000000 pixels.*limit of 89478485 pixels; scale', id='large'),
    pytest.param(png_header(100_000, 100_000), r'10000000000 pixels.*limit', id='bomb'),
])
def test_reason_is_given(tmp_path, content, reason):
    path = tmp_path / 'x.png'
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason):
        open_image(path)


def test_truncated_file_is_refused(tmp_path):
    path = save(tmp_path / 'x.jpg', gradient(400, 300))
    path.write_bytes(path.read_bytes()[:2000])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(UnreadableImageError, match='truncated'):
        open_image(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match='No such file'):
        open_image(tmp_path / 'gone.jpg')
    with pytest.raises(UnreadableImageError, match=r'directory|denied'):
        open_image(tmp_path)


def test_any_error_of_a_decoder_is_a_reason(tmp_path, monkeypatch):
    path = save(tmp_path / 'x.png', gradient())

    def fail(self):
        raise struct.error('unpack requires a buffer of 4 bytes')

    monkeypatch.setattr(ImageFile.ImageFile, 'load', fail)
    with pytest.raises(UnreadableImageError, match='unpack requires'):
        open_image(path)


def test_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    path = save(tmp_path / 'x.jpg', gradient(20, 20).resize((1600, 1300), Image.Resampling.BICUBIC))
    full, small = open_image(path), open_image(path, side=64)
    assert full.size == (1600, 1300)
    assert small.size == (400, 325)
    assert_close(small.resize((64, 52)), full.resize((64, 52)), 3)
    assert open_image(path, side=256).size == full.size
