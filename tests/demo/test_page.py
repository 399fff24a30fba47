"""The page as its visitors have it: a real server, asked over HTTP."""

import json
import re
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path

import pytest
from PIL import Image

from timm_drnet.demo import page as module
from timm_drnet.demo.network import Album
from timm_drnet.demo.page import build_page, launch_options
from timm_drnet.demo.rendering import render_album, render_photograph, render_samples
from timm_drnet.evaluate.prediction import format_flops, predict_images

from .conftest import PHOTOS

pytest.importorskip('gradio')
from gradio_client import Client, handle_file


@pytest.fixture(scope='module')
def address(network, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        # Gradio serves what is below the current folder and the one for temporary files.
        patch.chdir(tmp_path_factory.mktemp('elsewhere'))
        patch.setattr(tempfile, 'tempdir', str(tmp_path_factory.mktemp('temporary')))
        page = build_page(network, PHOTOS)
        _, local, _ = page.launch(
            server_name='127.0.0.1', prevent_thread_lock=True, quiet=True, **launch_options(PHOTOS))
        yield local
        page.close(verbose=False)


@pytest.fixture(scope='module')
def look(address):
    """Function that a visitor of their own looks at a file with; returns what the page says, without its pictures."""
    def look(path, position=None):
        client = Client(address, verbose=False)
        given = {} if position is None else {'position': position}
        return said(client.predict(handle_file(path), api_name='/look', **given))

    return look


def said(html):
    """The text of a piece of HTML."""
    return ' '.join(unescape(re.sub('<[^>]*>', ' ', html)).split())


def test_ten_at_once_get_the_answers_of_predict(look, cascade, network):
    files = PHOTOS[:10]
    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(look, files))
    for text, one in zip(told, predict_images(cascade, files, network.labels, topk=5).images, strict=True):
        assert text.startswith(f'{one.labels[0]} {one.probabilities[0]:.1%}'.replace('%', ' %'))
        assert f'{one.path.name} was classified at {one.resolution} px' in text
        assert f'FLOPs {format_flops(one.flops)} {one.flops / network.full_flops:.0%}'.replace('%', ' %') in text
        assert f'{one.resolution} px: stopped here' in text
        probable = text.partition('Most probable ')[2].partition(' What')[0]
        assert probable == ' '.join(
            f'{label} {p:.1%}'.replace('%', ' %') for label, p in zip(one.labels, one.probabilities, strict=True))


def test_slider(look):
    assert '32 px: stopped here' in look(PHOTOS[0], 0)
    assert '32 px: not run' not in look(PHOTOS[0], 100)
    assert '64 px: stopped here' in look(PHOTOS[0], 100)
    assert 'more than the full size alone' in look(PHOTOS[0], 100)


def test_a_visitor_s_photographs_count_once_each(address):
    client, other = Client(address, verbose=False), Client(address, verbose=False)
    for photo, tried in ((0, '1 photograph '), (1, '2 photographs '), (0, '2 photographs ')):
        text = said(client.predict(handle_file(PHOTOS[photo]), api_name='/look'))
        assert f'On the {tried}that you have tried' in text
    assert 'On the 1 photograph ' in said(other.predict(handle_file(PHOTOS[2]), api_name='/look'))


def test_several(address, cascade, network, tmp_path):
    (tmp_path / 'notes.jpg').write_text('no image')
    client = Client(address, verbose=False)
    html = client.predict([handle_file(path) for path in [*PHOTOS, tmp_path / 'notes.jpg']], api_name='/look_at_all')
    expected = predict_images(cascade, PHOTOS, network.labels)
    rows = [said(row) for row in re.findall('<tr>.*?</tr>', html, flags=re.DOTALL)]
    for row, one in zip(rows[1:-1], expected.images, strict=True):
        share = f'{one.flops / network.full_flops:.0%} {one.probabilities[0]:.1%}'.replace('%', ' %')
        flops = format_flops(one.flops, like=network.full_flops)
        assert row == f'{one.path.name} {one.labels[0]} {one.resolution} px {flops} {share}'
    assert rows[-1].startswith(f'mean {format_flops(expected.flops / 12, like=network.full_flops)}')
    assert said(html).startswith('12 photographs 4 at 32 px, 4 at 48 px, 4 at 64 px.')
    assert '1 file could not be read: notes.jpg: not an image of a format that Pillow can read' in said(html)
    assert html.count('<img src="data:image/png') == 1


def test_samples_are_served_from_anywhere(address):
    samples = Client(address, verbose=False).predict(api_name='/samples')
    assert [Path(sample).read_bytes() for sample in samples] == [photo.read_bytes() for photo in PHOTOS]


def test_what_is_no_photograph_gets_a_sentence(look, tmp_path, monkeypatch, capfd):
    files = {'notes.jpg': b'no image', 'empty.png': b''}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.new('RGB', (300, 200)).save(tmp_path / 'huge.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 50_000)
    assert look(tmp_path / 'notes.jpg') == 'notes.jpg: not an image of a format that Pillow can read'
    assert look(tmp_path / 'empty.png') == 'empty.png: the file is empty'
    assert look(tmp_path / 'huge.png') == (
        'huge.png: the image has more than 50000 pixels, the limit of Pillow; scale it down')
    assert 'Traceback' not in ''.join(capfd.readouterr())


@pytest.mark.parametrize('name', ['look', 'look_at_all'])
def test_no_other_file_of_the_server_is_read(address, name):
    def ask(data):
        call = f'{address}gradio_api/call/{name}'
        request = urllib.request.Request(
            call, json.dumps({'data': [data if name == 'look' else [data], 50]}).encode(),
            {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request) as response:
            event = json.load(response)['event_id']
        with urllib.request.urlopen(f'{call}/{event}') as response:
            return response.read().decode()

    assert ask({'path': str(PHOTOS[0])}).startswith('event: error')
    assert ask({'path': str(PHOTOS[0]), 'meta': {'_type': 'gradio.FileData'}}).startswith('event: error')


def test_too_many_files_get_a_sentence(address, monkeypatch):
    monkeypatch.setattr(module, 'MOST_FILES', 2)
    html = Client(address, verbose=False).predict([handle_file(path) for path in PHOTOS[:3]], api_name='/look_at_all')
    assert said(html).startswith('3 files: give at most 2 here')


def test_the_page_asks_no_other_server(address):
    with urllib.request.urlopen(address) as response:
        text = response.read().decode()
    # addresses of pictures for link previews are only named, not loaded
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="?https?://(?!127\.)[^>]*', text)
    assert '"analytics_enabled":false' in text


def test_names_are_not_markup(network, tmp_path):
    path = tmp_path / '<img src=x>&\x1b.jpg'
    path.write_bytes(PHOTOS[0].read_bytes())
    photo, album = network.look(path), network.look_at_all([path])
    for html in (
            render_photograph(network, photo, [photo.answers], 50), render_album(network, album, 50),
            render_album(network, Album((), None, network.look_at_all([tmp_path]).unreadable), 50)):
        assert '<img src=x>' not in html
        assert '\x1b' not in html
    assert '&lt;img src=x&gt;&amp;\\x1b.jpg' in render_photograph(network, photo, [photo.answers], 50)


def test_samples_are_buttons_with_names():
    html = render_samples([str(path) for path in PHOTOS])
    assert re.findall('<button type="button" value="(.*?)" title="(.*?)">', html)[4] == ('4', 'grand piano')
    assert html.count('alt="') == 12
