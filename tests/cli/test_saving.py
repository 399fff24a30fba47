"""What commands write: refused before the work where it cannot be, and otherwise there as a whole or not at all."""

import contextlib
import importlib
from pathlib import Path

import pytest

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.data import output_folder

PHOTOS = str(Path(__file__).parents[2] / 'examples' / 'photos')
MODEL = timm_drnet.DEFAULT_MODEL
TINY = ['--model-kwargs', 'backbone=test_resnet', 'resolutions=(64,48,32)', 'predictor=inverted_residual']


@pytest.mark.parametrize('argv', [
    ['predict', PHOTOS, '--save', '{out}.png'], ['validate', MODEL, PHOTOS, '--output', '{out}'],
    ['analyze', MODEL, PHOTOS, '{out}'], ['budget', MODEL, PHOTOS, '--target-gflops', '.2935', '--output', '{out}'],
    ['adapt', MODEL, PHOTOS, '--output', '{out}'], ['bench', MODEL, '--output', '{out}'],
    ['bench', MODEL, '--plot', '{out}.png', '--results', 'x.json'], ['export', MODEL, '{out}', '--format', 'torch'],
    ['publish', MODEL, 'org/name', '--dry-run', '{out}'],
    ['convert-mindspore', 'a.ckpt', 'b.ckpt', '{out}.safetensors'],
], ids=lambda argv: argv[0])
def test_place_is_checked_before_the_work(argv, tmp_path, monkeypatch, capsys):
    def read_only(*args, dir):
        assert dir == tmp_path
        raise OSError(30, 'Read-only file system')

    module = importlib.import_module(f'timm_drnet.cli.{argv[0].replace("-", "_")}')
    for load in ('load_model', 'read_checkpoint', 'drnet_to_adapt'):
        monkeypatch.setattr(module, load, lambda *args, **kwargs: pytest.fail('loaded'), raising=False)
    monkeypatch.setattr(output_folder.tempfile, 'TemporaryFile', read_only)
    assert main([argument.format(out=tmp_path / 'out') for argument in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert f'Read-only file system in {tmp_path}; name a place on another disk' in err
    assert err.count('\n') == 1


@contextlib.contextmanager
def full_disk(monkeypatch):
    """For a while, no file can be longer than a thousand bytes: pytest's own output neither."""
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(output_folder, '_LEAST', 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(('argv', 'printed'), [
    (['predict', PHOTOS, '--save', '{out}.png'], 'llama.jpg'),
    (['budget', MODEL, PHOTOS, '--target-gflops', '.2935', '--output', '{out}'], 'for 0.2935 GFLOPs'),
    (['publish', MODEL, 'org/name', '--dry-run', '{out}'], 'weights'),
    (['bench', 'drnet', '-b', '1', '--repeats', '1', '--engine', 'eager', '--output', '{out}', *TINY], 'dynamic'),
], ids=lambda argv: argv[0])
def test_nothing_half_written_and_no_result_lost(argv, printed, tmp_path, monkeypatch, capsys):
    with full_disk(monkeypatch):
        assert main([argument.format(out=tmp_path / 'out') for argument in argv]) == 2
    out, err = capsys.readouterr()
    assert printed in out
    assert f'{tmp_path}/out' in err
    assert 'File too large' in err
    assert err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_room_for_the_model_is_checked_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('timm_drnet.cli.budget.find_budget', lambda *args: pytest.fail('worked'))
    usage = output_folder.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(output_folder.shutil, 'disk_usage', lambda path: usage._replace(free=5_000_000))
    assert main(['budget', MODEL, PHOTOS, '--target-gflops', '.2935', '--output', str(tmp_path / 'out')]) == 2
    assert 'No space left on device' in capsys.readouterr().err


@pytest.mark.parametrize('argv', [
    ['budget', MODEL, PHOTOS, '--target-gflops', '.2935', '--output', '{out}'],
    ['predict', f'{PHOTOS}/llama.jpg', '--save', '{out}.png'],
    ['publish', MODEL, 'org/name', '--dry-run', '{out}'],
], ids=lambda argv: argv[0])
def test_folders_whose_names_are_no_text(argv, tmp_path, capsys):
    folder = tmp_path / 'caf\udce9\x1b'
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip('the file system has no such names')
    code = main([argument.format(out=folder / 'out') for argument in argv])
    out, err = capsys.readouterr()
    assert (code, err) == (0, '')
    assert '\x1b' not in out
    assert len(list(folder.iterdir())) == 1
