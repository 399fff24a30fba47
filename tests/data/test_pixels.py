"""Reading images of every mode, size and condition."""

import io
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from timm_drnet.data.pixels import UnreadableImageError, ignore_warnings, open_image, printable


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
        try:
            reopened.load()
        except OSError:
            pytest.skip('this release of Pillow cannot read what it wrote')
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


def test_orientation_is_applied_though_other_tags_are_damaged(tmp_path):
    tags = [(0x0112, 3, 6), (0x0100, 12, 1)]  # the orientation, and a width of a type that it must not have
    exif = b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(
        struct.pack('<HHII', tag, kind, 1, value) for tag, kind, value in tags) + bytes(4)
    path = save(tmp_path / 'x.png', gradient().transpose(Image.Transpose.ROTATE_90), exif=b'Exif\0\0' + exif)
    with Image.open(path) as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)
    assert_close(open_image(path), gradient(), 0)


@pytest.mark.parametrize('name', ['x.png', 'x.tif'])
def test_image_in_memory_is_converted_and_does_not_change(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = gradient().transpose(Image.Transpose.ROTATE_90)
    with Image.open(save(tmp_path / name, stored, exif=exif)) as image:
        for _ in range(2):
            assert_close(open_image(image), gradient(), 0)
    values = np.array([[0, 65535]], dtype=np.uint16)
    assert np.asarray(open_image(Image.fromarray(values), 'L')).tolist() == [[0, 255]]


@pytest.mark.parametrize('name', ['x.gif', 'x.webp', 'x.png'])
def test_animation_shows_its_first_frame(tmp_path, name):
    frames = [Image.new('RGB', (20, 10), colour) for colour in ('red', 'blue', 'lime')]
    options = {'lossless': True} if name.endswith('webp') else {}
    path = save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
    assert_close(open_image(path), frames[0], 0)


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG that declares a size and holds next to nothing."""
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')


@pytest.mark.parametrize(('content', 'reason'), [
    pytest.param(b'', 'empty', id='empty'),
    pytest.param(b'hello, world', 'not an image', id='text'),
    pytest.param(png_header(40, 30), r'truncated|broken|not enough|unrecognized', id='header'),
])
def test_reason_is_given(tmp_path, content, reason):
    path = tmp_path / 'x.png'
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=reason):
        open_image(path)


def icon(width, height):
    """An icon that declares 16 px, and holds a PNG of another size."""
    content = save(io.BytesIO(), Image.new('RGB', (width, height)), format='PNG').getvalue()
    return struct.pack('<HHHBBBBHHII', 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


@pytest.mark.parametrize('kind', [png_header, icon])
@pytest.mark.parametrize('action', ['default', 'ignore', 'error'])
def test_bomb_is_refused_whatever_becomes_of_warnings(monkeypatch, recwarn, kind, action):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5000)
    warnings.simplefilter(action)
    for height in (51, 100, 101, 1000):  # Pillow warns above its limit, and raises above twice that
        with pytest.raises(UnreadableImageError, match='^the image has more than 5000 pixels, .*; scale it down$'):
            open_image(io.BytesIO(kind(100, height)))


def test_limit_is_that_of_pillow(monkeypatch, recwarn):
    image = save(io.BytesIO(), Image.new('L', (100, 50)), format='PNG')
    for limit in (5000, None):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', limit)
        assert open_image(image).size == (100, 50)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4999)
    for source in (image, Image.new('L', (100, 50))):
        with pytest.raises(UnreadableImageError, match='more than 4999 pixels'):
            open_image(source)


def test_threads_leave_warnings_alone_and_refuse_bombs(monkeypatch, recwarn):
    """`warnings.catch_warnings` puts the filters back that it found, which may be those of another thread."""
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 5000)
    bomb, image = png_header(100, 60), save(io.BytesIO(), gradient(), format='PNG').getvalue()
    before = list(warnings.filters)

    def refused(content):
        try:
            open_image(io.BytesIO(content))
        except UnreadableImageError:
            return True
        return False

    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(refused, [bomb, image] * 200))
    finally:
        sys.setswitchinterval(interval)
    assert results == [True, False] * 200
    assert warnings.filters == before


@pytest.mark.parametrize('kind', [b'zTXt', b'iTXt', b'iCCP'])
@pytest.mark.parametrize('last', [False, True])
def test_large_text_does_not_cost_the_image(kind, last):
    image = Image.new('P', (2, 1), 0)
    image.putpalette([0, 0, 255, 9, 9, 9])
    image.putpixel((1, 0), 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = save(io.BytesIO(), image, format='PNG', transparency=1, exif=exif).getvalue()
    head = {b'zTXt': b'a\0\0', b'iTXt': b'a\0\1\0\0\0', b'iCCP': b'a\0\0'}[kind]
    text = chunk(kind, head + zlib.compress(bytes(2_000_000)))
    at = len(content) - 12 if last else 33  # before the end, or behind the header
    content = content[:at] + text + content[at:]
    with pytest.raises(ValueError, match='(?i)data too large'), Image.open(io.BytesIO(content)) as opened:
        opened.load()
    assert np.asarray(open_image(io.BytesIO(content))).tolist() == [[[0, 0, 255]], [[255, 255, 255]]]


def test_programs_ignore_warnings_of_pillow_alone(recwarn):
    warnings.simplefilter('error')
    ignore_warnings()
    warnings.warn_explicit('odd metadata', UserWarning, 'x.py', 1, 'PIL.TiffImagePlugin')
    with pytest.raises(UserWarning):
        warnings.warn_explicit('other', UserWarning, 'x.py', 1, 'PILLOWS')


def test_printable():
    assert printable('a b\u00e9 \x1b[31m\n\t\x85\u2028\udce9\\') == 'a b\u00e9 \\x1b[31m\\n\\t\\x85\\u2028\\udce9\\'


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
    full = open_image(path)
    assert full.size == (1600, 1300)
    for side, gap, size in ((64, 4, (400, 325)), (64, 2, (200, 163)), (162, 1, (200, 163)), (163, 1, (400, 325))):
        small = open_image(path, side=side, reducing_gap=gap)
        assert small.size == size
        assert_close(small.resize((64, 52)), full.resize((64, 52)), 3)
    for side, gap in ((64, None), (256, 4), (651, 1)):
        assert open_image(path, side=side, reducing_gap=gap).size == full.size
    with pytest.raises(ValueError, match=r'Invalid reducing_gap 0\.5: use at least 1'):
        open_image(path, side=64, reducing_gap=0.5)


def test_long_image_loses_its_ends_where_only_the_centre_is_used():
    long = Image.fromarray(np.tile(np.arange(1000, dtype=np.uint16)[None] * 60, (10, 1)))
    assert open_image(long).size == (1000, 10)
    middle = open_image(long, central=True)
    assert_close(middle, open_image(long).crop((420, 0, 580, 10)), 0)
    assert open_image(long.crop((0, 0, 160, 10)), central=True).size == (160, 10)
