"""The contact sheet: what is drawn where, read back from its pixels."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageDraw

from timm_drnet.evaluate import contact_sheet as module
from timm_drnet.evaluate.contact_sheet import contact_sheet
from timm_drnet.evaluate.prediction import Prediction, Predictions

COSTS = {128: 175_000_000, 96: 101_000_000, 64: 48_600_000}


@pytest.fixture
def texts(monkeypatch):
    """Everything that is written on sheets, with its position."""
    written = []
    draw = ImageDraw.ImageDraw.text

    def record(self, xy, text, *args, **kwargs):
        written.append((xy, text))
        return draw(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, 'text', record)
    return written


def make(tmp_path, resolutions, label='cat', size=(60, 60)):
    images = []
    for i, resolution in enumerate(resolutions):
        path = tmp_path / f'{i}.png'
        Image.new('RGB', size, (200, i, 30)).save(path)
        images.append(Prediction(path, (label,), (0.5,), resolution, COSTS[resolution]))
    return Predictions(tuple(images), (), COSTS, 168_500_000)


def thumbnails(sheet):
    """Upper left corners of the thumbnails by image number, found by their colours."""
    pixels = np.asarray(sheet).astype(int)
    mine = (pixels[..., 0] == 200) & (pixels[..., 2] == 30)
    return {
        int(i): tuple(int(v) for v in np.argwhere(mine & (pixels[..., 1] == i)).min(axis=0)[::-1])
        for i in np.unique(pixels[..., 1][mine])
    }


def test_images_stand_in_rows_by_resolution_the_smallest_first(tmp_path):
    places = thumbnails(contact_sheet(make(tmp_path, [128, 64, 96, 64, 128])))
    assert sorted(places) == [0, 1, 2, 3, 4]
    rows = [{places[i][1] for i in group} for group in ((1, 3), (2,), (0, 4))]
    assert all(len(row) == 1 for row in rows)
    assert rows[0].pop() < rows[1].pop() < rows[2].pop()
    assert places[1][0] == places[2][0] == places[0][0] < places[3][0] == places[4][0]


def test_rows_wrap(tmp_path):
    sheet = contact_sheet(make(tmp_path, [64] * 20))
    places = thumbnails(sheet)
    assert sorted({y for _, y in places.values()}) == [places[0][1], places[8][1], places[16][1]]
    assert max(x for x, _ in places.values()) + module._TILE <= sheet.width
    assert max(y for _, y in places.values()) + module._TILE + module._CAPTION <= sheet.height


def test_headings(tmp_path, texts):
    contact_sheet(make(tmp_path, [128, 64, 64]))
    written = [text.strip() for _, text in texts]
    assert '64 px' in written
    assert '· 48.6 MFLOPs · 2 of 3' in written
    assert '· 101 MFLOPs · 0 of 3' in written
    assert '3 images · 90.7 MFLOPs each on average · 54% of the plain backbone at 128 px' in written
    assert written.count('cat') == written.count('50.0%') == 3


def test_thumbnails_are_to_scale_above_their_captions(tmp_path, texts):
    sheet = contact_sheet(make(tmp_path, [64, 128, 96, 64]))
    captions = sorted(xy for xy, text in texts if text == 'cat')
    pixels = np.asarray(sheet).astype(int)
    found = []
    for i, resolution in enumerate((64, 128, 96, 64)):
        y, x = np.nonzero((pixels == (200, i, 30)).all(axis=2))
        side = module._TILE * resolution // 128
        # The frame is one pixel wide.
        assert np.ptp(y) + 3 == np.ptp(x) + 3 == side
        found.append((x.min() - 1, y.max() + 2 + 5))
    assert captions == sorted(found)


def test_limit_cuts_the_large_groups_and_says_so(tmp_path, texts):
    places = thumbnails(contact_sheet(make(tmp_path, [64] * 9 + [96] * 2), limit=6))
    assert sorted(places) == [0, 1, 2, 3, 9, 10]
    written = [text.strip() for _, text in texts]
    assert '· 48.6 MFLOPs · 9 of 11 · the first 4 shown' in written
    assert '· 101 MFLOPs · 2 of 11' in written


@pytest.mark.parametrize('label', ['a very long label that nobody can read below a thumbnail', 'x' * 300, 'W' * 40])
def test_long_labels_are_shortened_to_the_thumbnail(tmp_path, texts, label):
    contact_sheet(make(tmp_path, [64], label=label))
    (shown,) = [text for _, text in texts if text[:1] == label[0] and text.endswith('…')]
    assert module._font(15).getlength(shown) <= module._TILE
    assert label.startswith(shown[:-1])
    assert len(shown) > 5


def test_letters_that_the_font_lacks(tmp_path, texts):
    contact_sheet(make(tmp_path, [64], label='Pâté en croûte'))
    assert 'Pate en croute' in [text for _, text in texts]


@pytest.mark.parametrize('crop_pct', [1.0, 0.5])
def test_thumbnail_is_the_centre_of_the_image(tmp_path, crop_pct):
    predictions = dataclasses.replace(make(tmp_path, [128]), crop_pct=crop_pct)
    image = Image.new('RGB', (300, 60), 'black')
    half = round(30 * crop_pct) + 10  # a little more than the central square
    image.paste((200, 0, 30), (150 - half, 0 if crop_pct == 1 else 5, 150 + half, 60 if crop_pct == 1 else 55))
    image.save(predictions.images[0].path)
    sheet = contact_sheet(predictions)
    x, y = thumbnails(sheet)[0]
    inside = np.asarray(sheet)[y:y + module._TILE - 2, x:x + module._TILE - 2]
    assert (inside == (200, 0, 30)).all()


def test_image_that_has_gone_leaves_a_blank(tmp_path):
    predictions = make(tmp_path, [64, 64])
    predictions.images[0].path.unlink()
    assert sorted(thumbnails(contact_sheet(predictions))) == [1]


def test_nothing_to_draw():
    with pytest.raises(ValueError, match='no images'):
        contact_sheet(Predictions((), (), COSTS, 1))


def test_single_images_of_odd_shapes(tmp_path):
    for size in ((1, 1), (3, 2000), (2000, 3)):
        (tmp_path / str(size)).mkdir()
        assert isinstance(contact_sheet(make(tmp_path / str(size), [96], size=size)), Image.Image)
