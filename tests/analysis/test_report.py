"""The report of an analysis: read back as a browser and a spreadsheet would."""

import base64
import csv
import dataclasses
import hashlib
import io
import json
import math
import random
import re
import tomllib
from fnmatch import fnmatch
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image
from torchvision.datasets import ImageFolder

from timm_drnet.analysis import choices as module
from timm_drnet.analysis import images as analysis_images
from timm_drnet.analysis import page as page_module
from timm_drnet.analysis.charts import Chart, Series, ticks
from timm_drnet.analysis.choices import score_answers
from timm_drnet.analysis.report import write_report
from timm_drnet.core.arguments import DRNetArgs
from timm_drnet.cost.flops import CostRow
from timm_drnet.cost.static_line import CurvePoint
from timm_drnet.cost.verdict import Comparison, Verdict
from timm_drnet.data.datasets import open_labelled_images
from timm_drnet.data.labelled import LabelledImages, make_loader
from timm_drnet.evaluate import curve as curve_module
from timm_drnet.evaluate import validation
from timm_drnet.evaluate.answers import Answers
from timm_drnet.evaluate.curve import Curve

SIDES, BACKBONE, PREDICTOR = (96, 64, 32), (100, 60, 20), 5
CLASSES = ('cat & <b>dog</b>', '"><script>alert(1)</script>', "o'hare")
NASTY = '"><img src=x onerror=alert(1)>.png'
CONFIG = {
    'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'mean': (0.0,) * 3, 'std': (1.0,) * 3, 'crop_pct': 1.0,
    'crop_mode': 'center',
}
ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / 'timm_drnet/analysis/template'
CSS, SCRIPT = ((TEMPLATE / name).read_text(encoding='utf-8') for name in ('style.css', 'sort.js'))
VOID = {'meta', 'img', 'br', 'wbr'}


class Page(HTMLParser):
    """The elements of a page, each with its attributes and text, and whether tags close as they should."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], ''
        self.feed(html)
        assert not self.open, 'all elements are closed'

    def handle_starttag(self, tag, attrs):
        element = SimpleNamespace(tag=tag, attrs=dict(attrs), text='', inside=[one.tag for one in self.open])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)  # of SVG; HTML has no such tags
        assert self.open.pop().tag == tag

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        for element in self.open:
            element.text += data

    def find(self, tag, **attrs):
        return [one for one in self.elements
                if one.tag == tag and all(one.attrs.get(key.rstrip('_')) == value for key, value in attrs.items())]

    def of_class(self, tag, name):
        return [one for one in self.find(tag) if name in (one.attrs.get('class') or '').split()]


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    rows = tuple(
        CostRow(side, flops * 10 ** 9, PREDICTOR * 10 ** 9, (flops + PREDICTOR) * 10 ** 9, flops / BACKBONE[0])
        for side, flops in zip(SIDES, BACKBONE, strict=True))
    for user in (module, validation, curve_module):
        monkeypatch.setattr(user, 'cost_table', lambda model: rows)


def make_model(sides=SIDES, **args):
    return SimpleNamespace(
        args=DRNetArgs(resolutions=sides, **args), resolutions=sides, num_classes=3, prices=(0,) * len(sides))


def make_analysis(number, choices=None, seed=0, **args):
    """An analysis with numbers drawn at random; every third image has each label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 3
    right = torch.rand(number, 3, generator=generator) < 0.6
    probabilities = torch.rand(number, 3, generator=generator, dtype=torch.float64).softmax(dim=1)
    if choices is not None:
        probabilities = (probabilities / 10).scatter(1, torch.tensor(choices)[:, None], 0.9)
    classes = (torch.where(right, labels[:, None], labels[:, None] + 1)[..., None] + torch.arange(3)) % 3
    model, sure = make_model(**args), probabilities[..., None].expand(-1, -1, 3).float()
    scores = probabilities.log().float() if model.args.uses_predictor else None
    return score_answers(model, Answers(labels, scores, classes, sure))


class Pictures:
    """A dataset without files, as torchvision's are: image i is of one grey that tells its number."""

    def __init__(self, number, broken=()):
        self.number, self.broken = number, broken

    def __len__(self):
        return self.number

    def __getitem__(self, i):
        if i in self.broken:
            raise OSError(f'cannot read {i}')
        return Image.new('RGB', (40, 30), (20 * i % 256,) * 3), i % 3


def read_all(images):
    for _ in images.batches(make_loader(images, CONFIG, 4)):
        pass
    return images


def write(tmp_path, analysis, images, **settings):
    out = tmp_path / 'out'
    summary = write_report(analysis, images, out, 'net <1>', 'data & more', CLASSES, settings)
    return summary, Page((out / 'index.html').read_text(encoding='utf-8')), out


def grey(uri):
    """Of a thumbnail."""
    assert uri.startswith('data:image/jpeg;base64,')
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2])))
    assert (image.format, image.mode, image.size) == ('JPEG', 'RGB', (144, 144))
    return round(float(np.asarray(image).mean()))


@pytest.fixture
def written(tmp_path):
    """A report of twelve images."""
    analysis = make_analysis(12)
    return analysis, *write(tmp_path, analysis, read_all(LabelledImages(Pictures(12), 'RGB')), amp=False, limit=None)


def test_page_needs_nothing_but_itself(written):
    _, _, page, out = written
    assert sorted(path.name for path in out.iterdir()) == ['classes.csv', 'images.csv', 'index.html', 'summary.json']
    assert [one.text for one in page.find('script')] == [SCRIPT]
    for tag, attribute in (('img', 'src'), ('a', 'href'), ('link', 'href'), ('script', 'src'), ('use', 'href')):
        for element in page.find(tag):
            target = element.attrs.get(attribute) or ''
            assert target.startswith('data:image/jpeg;base64,') or target in ('', *(f.name for f in out.iterdir()))
    assert not re.search(r'url\(|@import|https?:', CSS + SCRIPT)
    assert 'http:' not in (out / 'index.html').read_text().replace('http-equiv', '')
    policy = page.find('meta', **{'http-equiv': 'Content-Security-Policy'})[0].attrs['content']
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()  # without it, sorting would not run
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_names_do_not_become_markup(tmp_path):
    folder = tmp_path / 'data'
    for i, name in enumerate((NASTY, 'b\x1b[31m.png', 'c\u202e.png')):
        path = folder / 'xyz'[i] / name
        path.parent.mkdir(parents=True)
        Image.new('RGB', (40, 30)).save(path, 'PNG')
    (folder / 'x' / '<svg onload=alert(2)>\x1b.png').write_text('no image')
    images = read_all(open_labelled_images(str(folder), num_classes=3))
    _, page, out = write(tmp_path, make_analysis(3), images, data='<i>')
    assert len(page.find('script')) == 1
    assert not any(attribute.startswith('on') for element in page.elements for attribute in element.attrs)
    assert len(page.find('img')) == 3
    names = [image.attrs['title'] for image in page.find('img')]
    assert sorted(names) == sorted([f'x/{NASTY}', 'y/b\\x1b[31m.png', 'z/c\\u202e.png'])
    assert page.find('title')[0].text == 'Choices of resolution: net <1> on data & more'
    assert {one.text for one in page.find('b')} == set(CLASSES)
    assert any(one.text == '<i>' for one in page.find('dd'))
    assert 'x/<svg onload=alert(2)>\\x1b.png: not an image' in page.of_class('div', 'notice')[0].text
    assert not any('\x1b' in path.read_text() for path in out.iterdir())


def test_page_can_be_read_without_eyes_and_without_colours(written):
    analysis, _, page, _ = written
    assert page.find('html')[0].attrs['lang'] == 'en'
    assert page.find('meta', name='viewport')
    assert all(image.attrs['alt'] for image in page.find('img'))
    for element in page.find('svg'):
        assert element.attrs.get('aria-hidden') == 'true' or (
            element.attrs['role'] == 'img' and element.attrs['aria-label'])
    assert all(head.attrs['scope'] in ('row', 'col') for head in page.find('th'))
    assert all(patch.attrs['aria-hidden'] == 'true' for patch in page.of_class('span', 'swatch'))
    assert len(page.find('h1')) == 1
    assert len(page.find('table')) == len(page.find('caption')) == 7
    answers = [one.text for one in page.find('span') if one.text[:1] in ('✓', '✗')]
    assert len(answers) == 12
    assert sum('✓' in answer for answer in answers) == round(12 * analysis.validation.dynamic.top1 / 100)
    assert 'color-scheme: light dark' in CSS


@pytest.mark.parametrize('dark', [False, True])
def test_letters_stand_out_from_what_they_stand_on(dark):
    colours = {name: pair[dark] for name, *pair in re.findall(r'--(\w+): light-dark\((#\w{6}), (#\w{6})\)', CSS)}

    def luminance(name):
        parts = [int(colours[name][i:i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for name in ('ink', 'soft', 'accent', 'too_small'):  # WCAG 2, AA
        assert contrast(name, 'paper') >= 4.5, name
    assert contrast('soft', 'raised') >= 4.5
    assert contrast('edge', 'paper') >= 3


def words(element):
    """Text as it is shown."""
    return ' '.join(element.text.split())


def cells(page, label):
    """Of the table that is about something: each row's texts."""
    page_rows, rows = [one for one in page.elements if one.tag in ('div', 'tr', 'th', 'td')], []
    inside = False
    for one in page_rows:
        if one.tag == 'div':
            inside = one.attrs.get('aria-label') == label
        elif inside and one.tag == 'tr':
            rows.append([])
        elif inside:
            rows[-1].append(words(one))
    return rows


def test_numbers_of_the_page(written):
    analysis, _, page, _ = written
    validation, oracle, choices = analysis.validation, analysis.validation.oracle, analysis.choices
    figures = [one.text for one in page.of_class('dd', 'figure')]
    assert figures == [f'{value:.2f}\xa0%' for value in (
        validation.dynamic.top1, validation.resolutions[0].held.top1, oracle.top1, 100 * choices.agreement)]
    costs = {row[0]: row[1:] for row in cells(page, 'Accuracy and cost')[1:]}
    assert costs['Dynamic'] == [
        f'{validation.dynamic.top1:.2f} %', f'{validation.dynamic.gflops:.4f}',
        f'{100 * validation.dynamic.fraction:.1f} %']
    assert costs['Held at 64 px'][1:] == ['60.0000', '60.0 %']
    assert costs['Oracle with router'] == [
        f'{oracle.top1:.2f} %', f'{oracle.gflops_with_router:.4f}', f'{100 * oracle.fraction_with_router:.1f} %']
    assert costs['Oracle'][1] == f'{oracle.gflops:.4f}'
    assert len(costs) == 7
    confusion = cells(page, 'Choices')
    assert confusion[0] == ['Images', '96 px', '64 px', '32 px', 'all']
    for shown, row in zip(confusion[1:], choices.confusion, strict=True):
        parts = [f'{n} {100 * n / sum(row) if n else 0:.0f} %' for n in row]
        assert shown[1:] == [*parts, str(sum(row))]
    assert [row[0] for row in confusion[1:]] == ['needs 96 px', 'needs 64 px', 'needs 32 px', 'right at none']
    shades = [one.attrs['style'] for one in page.find('td') if one.attrs.get('style', '').endswith('%')]
    assert shades == [f'--part: {50 * n / max(sum(row), 1):.0f}%' for row in choices.confusion for n in row]
    framed = page.of_class('td', 'agree')
    assert list(map(words, framed)) == [
        confusion[1][1], confusion[2][2], confusion[3][3], confusion[4][3]]
    classes = cells(page, 'Classes')[1:]
    assert [row[0] for row in classes] == list(CLASSES)
    for shown, one in zip(classes, analysis.classes, strict=True):
        assert shown[1:4] == [str(one.images), f'{one.top1:.1f} %', f'{one.held_top1:.1f} %']
        assert shown[5:] == [*(f'{100 * share:.0f} %' for share in one.shares), f'{one.gflops:.4f}']
    outcomes = [row[1] for row in cells(page, 'Outcomes')[1:]]
    assert outcomes == [f'{100 * n / 12:.1f} %' for n in dataclasses.astuple(choices.outcomes)]
    assert cells(page, 'Sizes')[1:4] == [
        [f'{side} px', f'{100 * oracle.images[j] / 12:.1f} %', f'{100 * validation.resolutions[j].share:.1f} %']
        for j, side in enumerate(SIDES)]
    meters = [one.attrs['style'] for one in page.of_class('td', 'meter')]
    assert len(meters) == 3 * 2 + 1 + 5
    assert [float(re.search(r'--part: ([\d.]+);', style)[1]) for style in meters[-5:]] == pytest.approx(
        [n / 12 for n in dataclasses.astuple(choices.outcomes)], abs=1e-4)


def test_classes_sort_by_the_values_that_are_shown(written):
    analysis, _, page, _ = written
    values = [one.attrs['data-value'] for one in page.elements if 'data-value' in one.attrs]
    width = 1 + 4 + 3 + 1
    assert len(values) == 3 * width
    for i, one in enumerate(analysis.classes):
        name, *numbers = values[i * width:(i + 1) * width]
        assert name == CLASSES[one.label]
        assert list(map(float, numbers)) == [
            one.images, one.top1, one.held_top1, one.gflops, *one.shares, one.gflops]


def test_tables_for_programs(written):
    analysis, _, _, out = written
    with (out / 'images.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        'name', 'label', 'label_name', 'prediction_96', 'prediction_64', 'prediction_32', 'right_96', 'right_64',
        'right_32', 'probability_96', 'probability_64', 'probability_32', 'choice', 'oracle', 'outcome']
    assert len(rows) == 12
    for i, (row, image) in enumerate(zip(rows, analysis.images, strict=True)):
        assert (row['name'], row['label'], row['label_name']) == (f'image {i}', str(i % 3), CLASSES[i % 3])
        for j, side in enumerate(SIDES):
            assert row[f'prediction_{side}'] == str(image.predictions[j])
            assert row[f'right_{side}'] == ('true' if image.predictions[j] == i % 3 else 'false')
            assert float(row[f'probability_{side}']) == pytest.approx(image.probabilities[j], rel=1e-5)
        assert row['choice'] == str(SIDES[image.choice])
        assert row['oracle'] == ('none' if image.oracle is None else str(SIDES[image.oracle]))
        assert row['outcome'] == image.outcome
    with (out / 'classes.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['label_name'] for row in rows] == list(CLASSES)
    for row, one in zip(rows, analysis.classes, strict=True):
        expected = [one.label, one.images, one.top1, one.held_top1, *one.shares, one.gflops]
        found = [float(value) for key, value in row.items() if key != 'label_name']
        assert found == pytest.approx(expected, rel=1e-5)


def test_summary(written):
    analysis, summary, _, out = written
    read = json.loads((out / 'summary.json').read_text())
    assert read == json.loads(json.dumps(summary))
    assert (read['amp'], read['limit'], read['images'], read['unreadable']) == (False, None, 12, [])
    assert read['dynamic']['top1'] == analysis.validation.dynamic.top1
    assert read['oracle']['gflops'] == analysis.validation.oracle.gflops
    assert read['choices']['outcomes']['too_small'] == analysis.choices.outcomes.too_small
    assert [one['count'] for one in read['calibration']['bins']] == [one.count for one in analysis.calibration.bins]


def test_thumbnails_stand_by_resolution_the_smallest_first(tmp_path):
    choices = [0, 2, 1, 0, 2, 1, 0, 2, 1, 2]
    analysis = make_analysis(10, choices)
    _, page, _ = write(tmp_path, analysis, read_all(LabelledImages(Pictures(10), 'RGB')))
    order = [1, 4, 7, 9, 2, 5, 8, 0, 3, 6]
    assert [image.attrs['title'] for image in page.find('img')] == [f'image {i}' for i in order]
    assert [grey(image.attrs['src']) for image in page.find('img')] == pytest.approx([20 * i for i in order], abs=2)
    assert [words(one) for one in page.find('h3')][-3:] == ['32 px: 4 images', '64 px: 3 images', '96 px: 3 images']
    needs = [words(one) for one in page.find('li') if words(one).endswith(('at no size', ' px'))]
    for text, i in zip(needs, order, strict=True):
        image = analysis.images[i]
        said = CLASSES[image.predictions[image.choice]]
        needed = 'right at no size' if image.oracle is None else f'needs {SIDES[image.oracle]} px'
        assert text == CLASSES[i % 3] + ('✓ right' if image.right[image.choice] else f'✗ taken for {said}') + needed


def test_a_choice_of_many_images_is_spread_over_all_of_them(tmp_path):
    analysis = make_analysis(60, [0] * 60)
    _, page, _ = write(tmp_path, analysis, read_all(LabelledImages(Pictures(60), 'RGB')))
    shown = [int(image.attrs['title'].split()[1]) for image in page.find('img')]
    assert shown == [math.floor(2.5 * i) for i in range(24)]
    assert [words(one) for one in page.find('h3')][-3:] == [
        '32 px: 0 images', '64 px: 0 images', '96 px: 60 images, 24 of them shown']


def test_unreadable_images_do_not_shift_the_others(tmp_path):
    images = read_all(LabelledImages(Pictures(6, broken=(0, 3)), 'RGB'))
    summary, page, out = write(tmp_path, make_analysis(4, [0] * 4), images)
    assert [grey(image.attrs['src']) for image in page.find('img')] == pytest.approx([20, 40, 80, 100], abs=2)
    with (out / 'images.csv').open(newline='') as file:
        assert [row['name'] for row in csv.DictReader(file)] == ['image 1', 'image 2', 'image 4', 'image 5']
    notice = words(page.of_class('div', 'notice')[0])
    assert notice.startswith('2 images could not be read and are in none of the numbers.')
    assert 'image 0: cannot read 0' in notice
    assert summary['unreadable'] == [
        {'path': 'image 0', 'reason': 'cannot read 0'}, {'path': 'image 3', 'reason': 'cannot read 3'}]


def test_unreadable_images_that_share_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr(LabelledImages, 'name', lambda self, index: 'same.png')
    images = read_all(LabelledImages(Pictures(4, broken=(1,)), 'RGB'))
    _, page, _ = write(tmp_path, make_analysis(3, [0] * 3), images)
    assert [grey(image.attrs['src']) for image in page.find('img')] == pytest.approx([0, 40, 60], abs=2)


def test_many_unreadable_images(tmp_path):
    images = read_all(LabelledImages(Pictures(110, broken=range(104)), 'RGB'))
    _, page, _ = write(tmp_path, make_analysis(6), images)
    notice = words(page.of_class('div', 'notice')[0])
    assert 'image 99:' in notice
    assert 'image 100:' not in notice
    assert notice.endswith('and 4 more, see summary.json')


def test_no_notice_where_all_was_read(written):
    assert 'could not be read' not in written[2].text


def test_image_that_is_gone_when_its_thumbnail_is_made(tmp_path):
    pictures = Pictures(3)
    images = read_all(LabelledImages(pictures, 'RGB'))
    pictures.broken = (1,)
    _, page, _ = write(tmp_path, make_analysis(3), images)
    assert len(page.find('img')) == 2
    assert page.of_class('div', 'gone')[0].text == 'image 1 can no longer be read'


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_datasets_of_torchvision_and_of_grey_images(tmp_path, mode):
    for i in range(3):
        path = tmp_path / 'data' / 'abc'[i] / 'x.png'
        path.parent.mkdir(parents=True)
        Image.new('RGB', (40, 30), (60 * i,) * 3).save(path)
    images = LabelledImages(ImageFolder(tmp_path / 'data'), mode)
    images.transform = lambda image: torch.zeros(1)
    _, page, _ = write(tmp_path, make_analysis(3, [0] * 3), images)
    assert [grey(image.attrs['src']) for image in page.find('img')] == pytest.approx([0, 60, 120], abs=2)


def test_other_images_than_those_of_the_analysis(tmp_path):
    with pytest.raises(ValueError, match='analysis is of 5 images, but 6 can be read'):
        write(tmp_path, make_analysis(5), LabelledImages(Pictures(6), 'RGB'))
    assert list(tmp_path.iterdir()) == []


def test_names_for_other_classes(tmp_path):
    with pytest.raises(ValueError, match='1 class_names for a model of 3 classes'):
        write_report(make_analysis(3), LabelledImages(Pictures(3), 'RGB'), tmp_path / 'out', 'a', 'b', ['x'], {})


def test_folder_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('timm_drnet.analysis.report._write_table', fail)
    with pytest.raises(OSError, match='No space left'):
        write(tmp_path, make_analysis(3), LabelledImages(Pictures(3), 'RGB'))
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_empty(tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/mine.txt').write_text('precious')
    with pytest.raises(ValueError, match='this folder is not empty'):
        write(tmp_path, make_analysis(3), LabelledImages(Pictures(3), 'RGB'))
    assert (tmp_path / 'out/mine.txt').read_text() == 'precious'


@pytest.mark.parametrize('number', [1, 7])
def test_models_with_one_and_with_many_resolutions(tmp_path, monkeypatch, number):
    rows = tuple(
        CostRow(32 * (number - j), 10 ** 9 * (number - j), 10 ** 8, 10 ** 9 * (number - j) + 10 ** 8, 1 - j / number)
        for j in range(number))
    for user in (module, validation, curve_module):
        monkeypatch.setattr(user, 'cost_table', lambda model: rows)
    right = torch.arange(8)[:, None].expand(8, number) % 2 == 0
    classes = torch.where(right, 0, 1)[..., None]
    scores = torch.nn.functional.one_hot(torch.arange(8) % number, number).float()
    answers = Answers(torch.zeros(8, dtype=torch.int64), scores, classes, torch.ones(classes.shape))
    analysis = score_answers(make_model(tuple(row.resolution for row in rows)), answers)
    _, page, _ = write(tmp_path, analysis, LabelledImages(Pictures(8), 'RGB'))
    groups = [words(one) for one in page.find('h3') if re.fullmatch(r'\d+ px: \d images?', words(one))]
    sides = [32 * (j + 1) for j in range(number)]
    expected = [8] if number == 1 else [1] * 6 + [2]  # the eighth image is again at the largest
    assert groups == [f'{side} px: {n} image{"s" if n > 1 else ""}' for side, n in zip(sides, expected, strict=True)]
    assert len(cells(page, 'Choices')) == number + 2


def test_page_is_the_same_each_time(written):
    analysis, _, _, out = written
    images = LabelledImages(Pictures(12), 'RGB')
    write_report(analysis, images, out.with_name('again'), 'net <1>', 'data & more', CLASSES,
                 {'amp': False, 'limit': None})
    for path in out.iterdir():
        assert path.read_bytes() == (out.with_name('again') / path.name).read_bytes()


# Charts.

def numbers(text):
    return [float(value) for value in re.findall(r'-?\d+(?:\.\d+)?', text)]


def draw(series, **limits):
    macros = page_module._environment().get_template('macros.html').module
    return Page(macros.draw(Chart(series, 'across', 'up', **limits), 'the <title>'))


def test_points_stand_where_their_axes_say():
    page = draw([
        Series('a', 'circle', ((0.05, 70.0), (0.16, 82.0)), ('small', '<large>'), joined=True),
        Series('<b>', 'star', ((0.10, 76.0),), error=2.0)])
    assert page.find('svg')[0].attrs['aria-label'].startswith('the <title>')
    assert page.find('title')[2].text == '<b>'
    texts = {one.text: one.attrs for one in page.find('text')}
    across = {float(text): float(attrs['x']) for text, attrs in texts.items()
              if attrs.get('text-anchor') == 'middle' and re.fullmatch(r'[\d.]+', text)}
    up = {float(text): float(attrs['y']) - 4 for text, attrs in texts.items() if attrs.get('text-anchor') == 'end'}
    assert (up[min(up)], up[max(up)]) == (248, 12)
    places = [numbers(one.attrs['transform']) for one in page.find('g')]
    (x0, x1), (y0, y1) = (sorted(axis.items())[::len(axis) - 1] for axis in (across, up))
    for (x, y), place in zip([(0.05, 70), (0.16, 82), (0.1, 76)], places, strict=True):
        assert place == pytest.approx([
            x0[1] + (x1[1] - x0[1]) * (x - x0[0]) / (x1[0] - x0[0]),
            y0[1] + (y1[1] - y0[1]) * (y - y0[0]) / (y1[0] - y0[0])], abs=0.2)
        assert place == pytest.approx([min(max(place[0], 50), 384), min(max(place[1], 12), 248)])
    assert numbers(page.find('polyline')[0].attrs['points']) == pytest.approx(places[0] + places[1])
    half = -numbers(page.of_class('path', 'error')[0].attrs['d'])[1]
    assert half == pytest.approx(2 * (up[70] - up[75]) / 5, abs=0.1)
    assert {'small', '<large>'} <= texts.keys()


@pytest.mark.parametrize('seed', range(8))
def test_names_in_a_chart_are_clear_of_lines_marks_and_each_other(seed):
    draws = random.Random(seed)

    def some(number):
        xs, ys = ([draws.uniform(*ends) for _ in range(number)] for ends in ((0.3, 1.0), (50, 83)))
        return list(zip(sorted(xs), sorted(ys), strict=True))

    page = draw([
        Series('held', 'circle', some(5), [f'{96 + 32 * j} px' for j in range(5)], joined=True),
        Series('curve', 'budgets', some(6), joined=True),
        *(Series('one', 'star', some(1), error=1.0) for _ in range(3))])
    boxes = []  # of the names, in a font whose letters are wide: DejaVu Sans has 0.6 of its size, on average
    for text in page.of_class('text', 'label'):
        x, baseline, half = float(text.attrs['x']), float(text.attrs['y']), 0.3 * 13 * len(text.text)
        boxes.append((x - half, baseline - 10, x + half, baseline + 3))
    taken = [tuple(numbers(one.attrs['transform'])) for one in page.find('g')]
    for line in page.find('polyline'):
        corners = np.array(numbers(line.attrs['points'])).reshape(-1, 2)
        taken += [tuple(start + (end - start) * t) for start, end in pairwise(corners) for t in np.linspace(0, 1, 200)]
    assert len(boxes) >= 3
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 50 < left < right < 400
        assert 12 < top < bottom < 248
        assert not any(left < x < right and top < y < bottom for x, y in taken)
        assert not any(left < box[2] and box[0] < right and top < box[3] and box[1] < bottom for box in boxes[:i])


@pytest.mark.parametrize(('low', 'high'), [(0.0, 0.0), (100.0, 100.0), (0.3, 99.8)])
def test_no_axis_goes_beyond_all_images(low, high):
    page = draw([Series('a', 'circle', ((0.0, low), (1.0, high)))], x_limit=1.0)
    up = [float(one.text) for one in page.find('text', **{'text-anchor': 'end'})]
    assert len(up) > 1
    assert 0 <= min(up) <= low <= high <= max(up) <= 100
    across = [float(one.text) for one in page.find('text', y='264')]
    assert (min(across), max(across)) == (0, 1)


@pytest.mark.parametrize(('low', 'high', 'expected'), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 0.17, [0, 0.05, 0.1, 0.15, 0.2]), (71.3, 84.2, [70, 75, 80, 85]),
    (0, 4.3, [0, 1, 2, 3, 4, 5]), (99.5, 100.5, [99.4, 99.6, 99.8, 100, 100.2, 100.4, 100.6]), (0, 3e-4, None),
])
def test_ticks(low, high, expected):
    found = ticks(low, high)
    assert found[0] <= low < high <= found[-1]
    assert 3 <= len(found) <= 8
    if expected:
        assert found == pytest.approx(expected)


def test_reliability_diagram(written):
    analysis, _, page, _ = written
    bins = [one for one in analysis.calibration.bins if one.count]
    svg, = (one for one in page.of_class('svg', 'chart') if 'by probability' in one.attrs['aria-label'])
    places = [numbers(one.attrs['transform']) for one in page.find('g') if one.text.strip() == 'Images']
    for place, one in zip(places, bins, strict=True):
        assert place == pytest.approx([50 + 334 * one.probability, 248 - 236 * one.frequency], abs=0.1)
    assert numbers(page.of_class('polyline', 'ideal')[0].attrs['points']) == [50, 248, 384, 12]
    assert {str(one.count) for one in bins} <= set(svg.text.split())


def test_verdict_and_curve(tmp_path):
    verdict = Verdict(
        'It <pays>.', Comparison('the static line', 78.5, 2.51, 1.2, 3.8), Comparison('lots', 80.5, 0.5, -0.25, 1.25),
        ('One size takes "97 %".',))
    curve = Curve(
        (CurvePoint(40, 60.0), CurvePoint(60, 72.5), CurvePoint(90, 80.0)),
        (CurvePoint(30, 55.0, '32 px'), CurvePoint(100, 80.5, '<96> px')))
    analysis = make_analysis(12)
    analysis = dataclasses.replace(
        analysis, validation=dataclasses.replace(analysis.validation, verdict=verdict), curve=curve)
    summary, page, out = write(tmp_path, analysis, read_all(LabelledImages(Pictures(12), 'RGB')))
    assert [words(one) for one in page.of_class('div', 'notice')] == ['Warning: One size takes "97 %".']
    shown = [words(one).replace('\u2212', '-') for one in page.find('li') if 'Interval' in one.text]
    assert shown == [
        '+2.51 points against the static line, 78.50 % right. Interval +1.20 to +3.80: the model is better.',
        '+0.50 points against lots, 80.50 % right. Interval -0.25 to +1.25: no difference that these images can show.']
    assert 'It <pays>.' in [one.text for one in page.find('strong')]
    assert cells(page, 'All budgets')[1:] == [
        ['Static line 32 px', '55.00 %', '30.0000'], ['Static line <96> px', '80.50 %', '100.0000'],
        ['Budget', '60.00 %', '40.0000'], ['Budget', '72.50 %', '60.0000'], ['Budget', '80.00 %', '90.0000']]
    assert len(numbers(page.of_class('polyline', 'budgets')[0].attrs['points'])) == 2 * 3
    assert {'32 px', '<96> px'} <= {one.text for one in page.of_class('text', 'label')}
    assert summary['curve']['static'][1] == {'gflops': 100, 'top1': 80.5, 'name': '<96> px'}
    assert json.loads((out / 'summary.json').read_text())['verdict']['static']['low'] == 1.2


def test_page_of_a_cascade(tmp_path):
    analysis = make_analysis(12, router='cascade', thresholds=(0.3, 0.35))
    _, page, _ = write(tmp_path, analysis, read_all(LabelledImages(Pictures(12), 'RGB')))
    assert analysis.validation.router == 'cascade'
    assert 'How sure the answers are' in [one.text for one in page.find('h2')]
    assert 'predictor' not in page.text.lower()
    assert len(cells(page, 'All budgets')) == 1 + len(analysis.curve.budgets) + len(analysis.curve.static)



def test_template_that_misses_something_says_so():
    with pytest.raises(UndefinedError, match="'model' is undefined"):
        page_module.render_page(make_analysis(3))


def test_template_is_in_the_package():
    patterns = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['setuptools']['package-data']['timm_drnet']
    for file in TEMPLATE.iterdir():
        assert any(fnmatch(f'analysis/template/{file.name}', pattern) for pattern in patterns)


def test_evenly_spaced():
    assert analysis_images.evenly_spaced([3, 4, 5], 5) == [3, 4, 5]
    assert analysis_images.evenly_spaced(list(range(10)), 5) == [0, 2, 4, 6, 8]
