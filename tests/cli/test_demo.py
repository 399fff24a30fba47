"""``timm-drnet demo`` from its arguments to a page that is served."""

import re
import runpy
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from timm_drnet.cli import demo, main
from timm_drnet.cli.arguments import DEFAULT_MODEL

ROOT = Path(__file__).parents[2]
SPACE = ROOT / 'examples' / 'space'


@pytest.fixture
def small_model(make_cascade, monkeypatch):
    """Commands that name no model get one that is soon ready."""
    def load(name, *args, **kwargs):
        return make_cascade() if name == DEFAULT_MODEL else load_model(name, *args, **kwargs)

    load_model = demo.load_model
    monkeypatch.setattr(demo, 'load_model', load)


@pytest.mark.usefixtures('small_model')
@pytest.mark.parametrize('place', ['clone', 'elsewhere'])
def test_page_is_served_until_it_is_interrupted(capsys, monkeypatch, tmp_path, place):
    pytest.importorskip('gradio')
    seen = []

    def wait():
        address = re.search(r'http://127\.0\.0\.1:\d+/', capsys.readouterr().out)[0]
        with urllib.request.urlopen(address) as response:
            seen.append(response.read().decode())
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, 'threading', SimpleNamespace(Event=lambda: SimpleNamespace(wait=wait)))
    monkeypatch.chdir(ROOT if place == 'clone' else tmp_path)
    assert main(['demo']) == 0
    assert seen[0].count('stop sign') == 2 * (place == 'clone')  # a sample: the photographs are not in the package


@pytest.mark.usefixtures('small_model')
@pytest.mark.parametrize(('arguments', 'told'), [
    (['no_such_model'], "cannot create model 'no_such_model'"),
    (['--samples', '{tmp}/nowhere.jpg'], '--samples {tmp}/nowhere.jpg: no such file or folder'),
    (['--samples', '{tmp}/two.txt'], '--samples {tmp}/two.txt: not an image'),
    (['--labels', '{tmp}/two.txt'], '2 lines for the 5 classes'),
    (['--port', '0'], '0: use a whole number from 1 to 65535'),
    (['--host', '192.0.2.1'], '--host 192.0.2.1: cannot serve there, Cannot assign requested address; use'),
    (['--host', 'no.such.invalid'], '--host no.such.invalid: cannot serve there, '),
])
def test_bad_input_is_one_clear_line(capsys, tmp_path, arguments, told):
    pytest.importorskip('gradio')
    (tmp_path / 'two.txt').write_text('a\nb\n')
    assert main(['demo', *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ('', 1)
    assert err.startswith('timm-drnet demo: ')
    assert told.format(tmp=tmp_path) in err


def test_without_gradio(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    assert main(['demo']) == 2
    assert capsys.readouterr().err == 'timm-drnet demo: the page needs Gradio: pip install "timm-drnet[demo]"\n'


def test_space_is_what_a_space_has_to_be():
    gradio = pytest.importorskip('gradio')
    head = yaml.safe_load((SPACE / 'README.md').read_text(encoding='utf-8').split('---\n')[1])
    assert (head['sdk'], head['app_file'], head['license']) == ('gradio', 'app.py', 'apache-2.0')
    assert len(head['short_description']) <= 60
    floor = re.search(r'"gradio>=([\d.]+)"', (ROOT / 'pyproject.toml').read_text(encoding='utf-8'))[1]
    assert head['sdk_version'].startswith(floor)
    page = runpy.run_path(str(SPACE / 'app.py'))['demo']
    assert isinstance(page, gradio.Blocks)
    assert 'grand piano' in str(page.config)
