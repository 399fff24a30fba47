import hashlib
import os
import re
import stat

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import timm_drnet.cli.convert_mindspore
from timm_drnet.cli import main
from timm_drnet.hub.mindspore.names import convert_checkpoints
from timm_drnet.hub.mindspore.reader import read_checkpoint

pytest_plugins = ['mindspore_files']


@pytest.fixture
def convert(checkpoints):
    """Function that converts the genuine checkpoints."""
    return lambda output: main(['convert-mindspore', *map(str, checkpoints), str(output)])


@pytest.fixture
def quick(monkeypatch):
    """Let a few small tensors stand for the genuine ones, where the test is about the file."""
    state_dict = {
        'backbone.fc.weight': torch.ones(7, 2), 'backbone.fc.bias': torch.zeros(7), 'predictor.bn1.running_mean':
        torch.zeros(9),
    }
    monkeypatch.setattr(timm_drnet.cli.convert_mindspore, 'convert_checkpoints', lambda *_: state_dict)
    return state_dict


def test_genuine_checkpoints(convert, checkpoints, tmp_path, capsys):
    output = tmp_path / 'drnet.safetensors'
    assert convert(output) == 0
    captured = capsys.readouterr()
    written, call = captured.out.splitlines()
    assert captured.err == ''
    assert os.listdir(tmp_path) == ['drnet.safetensors']

    content = output.read_bytes()
    assert written.startswith(f'{output}: ')
    assert f' {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}' in written
    assert call == ("timm.create_model('drnet_resnet50', pretrained=True,"
                    f" pretrained_cfg_overlay={{'file': '{output}'}})")
    model = eval(call, {'timm': timm})
    assert f' {len(model.state_dict())} tensors, {sum(p.numel() for p in model.parameters()):,} parameters,' in written
    expected = convert_checkpoints(*map(read_checkpoint, checkpoints))
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    with safe_open(output, 'pt') as file:
        assert file.metadata() == {'format': 'pt'}


def test_other_classes_are_in_the_call(convert, quick, tmp_path, capsys):
    assert convert(tmp_path / 'drnet.safetensors') == 0
    written, call = capsys.readouterr().out.splitlines()
    assert '3 tensors, 21 parameters' in written
    assert call.endswith("drnet.safetensors', 'num_classes': 7})")


def test_an_existing_file_is_replaced(convert, quick, tmp_path):
    output = tmp_path / 'drnet.safetensors'
    output.write_bytes(b'old')
    os.link(output, tmp_path / 'other name')
    assert convert(output) == 0
    assert torch.equal(load_file(output)['backbone.fc.weight'], quick['backbone.fc.weight'])
    assert (tmp_path / 'other name').read_bytes() == b'old'  # replaced, not written over


def test_others_may_read_the_file(convert, quick, tmp_path):
    before = os.umask(0o027)
    try:
        assert convert(tmp_path / 'drnet.safetensors') == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'drnet.safetensors').stat().st_mode) == 0o640


def test_output_in_the_working_folder(convert, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert convert('drnet.safetensors') == 0
    assert os.listdir() == ['drnet.safetensors']
    assert "{'file': 'drnet.safetensors'," in capsys.readouterr().out


def test_a_full_disk_leaves_what_there_was(convert, quick, tmp_path, capsys):
    resource = pytest.importorskip('resource')
    quick['backbone.fc.weight'] = torch.ones(10_000_000)
    output = tmp_path / 'drnet.safetensors'
    output.write_bytes(b'old')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000, before[1]))
    try:
        assert convert(output) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == ['drnet.safetensors']
    assert output.read_bytes() == b'old'
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert f'{output}: cannot be written' in err


def test_an_interruption_leaves_what_there_was(convert, quick, tmp_path, monkeypatch):
    output = tmp_path / 'drnet.safetensors'
    output.write_bytes(b'old')

    def interrupt(tensors, path, metadata):
        assert path.parent == tmp_path  # the same file system, where a file can be moved in one step
        path.write_bytes(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(timm_drnet.cli.convert_mindspore, 'save_file', interrupt)
    assert convert(output) == 130
    assert os.listdir(tmp_path) == ['drnet.safetensors']
    assert output.read_bytes() == b'old'


@pytest.fixture
def folder(checkpoints, tmp_path, monkeypatch):
    """Working folder with the genuine checkpoints as c.ckpt and p.ckpt, and others."""
    for path, name in zip(checkpoints, ('c.ckpt', 'p.ckpt'), strict=True):
        (tmp_path / name).symlink_to(path)
    (tmp_path / 'c.safetensors').symlink_to(checkpoints[0])
    (tmp_path / 'sub.safetensors').mkdir()
    (tmp_path / 'notes.ckpt').write_text('Some notes')
    (tmp_path / 'half.ckpt').write_bytes(checkpoints[1].read_bytes()[:10_000_000])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(('argv', 'words'), [
    (['c.ckpt', 'none.ckpt', 'o.safetensors'], ['none.ckpt', 'No such file', '.ckpt file']),
    (['c.ckpt', 'notes.ckpt', 'o.safetensors'], ['notes.ckpt', 'at byte 0', 'MindSpore']),
    (['c.ckpt', 'half.ckpt', 'o.safetensors'], ['half.ckpt', 'at byte', 'get it again']),
    (['sub.safetensors', 'p.ckpt', 'o.safetensors'], ['sub.safetensors', 'folder']),
    (['p.ckpt', 'c.ckpt', 'o.safetensors'], ['swapped']),
    (['c.ckpt', 'c.ckpt', 'o.safetensors'], ['Invalid predictor', 'bn1.gamma']),
    (['c.ckpt', 'p.ckpt', 'o.ckpt'], ['o.ckpt', 'ends in .safetensors']),
    (['c.ckpt', 'p.ckpt', 'o'], ['ends in .safetensors']),
    (['c.ckpt', 'p.ckpt', 'sub.safetensors'], ['sub.safetensors', 'folder']),
    (['c.ckpt', 'p.ckpt', 'no/o.safetensors'], ['OUT no/o.safetensors: there is no folder', 'create it']),
    (['c.ckpt', 'p.ckpt', 'notes.ckpt/o.safetensors'], ['there is no folder']),
    (['c.safetensors', 'p.ckpt', 'c.safetensors'], ['one of the files to convert']),
    (['c.ckpt', 'p.ckpt', 'c.safetensors'], ['one of the files to convert']),
    (['c.ckpt', 'c.safetensors', './sub.safetensors/../c.safetensors'], ['one of the files to convert']),
])
def test_bad_input_is_one_clear_line(argv, words, folder, checkpoints, capsys):
    before = sorted(os.listdir())
    assert main(['convert-mindspore', *argv]) == 2
    captured = capsys.readouterr()
    assert captured.out == ''
    assert len(captured.err.strip().splitlines()) == 1
    assert all(word in captured.err for word in words), captured.err
    assert sorted(os.listdir()) == before
    assert checkpoints[0].stat().st_size > 100_000_000


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_no_permission(convert, tmp_path, capsys):
    (tmp_path / 'o.safetensors').write_bytes(b'old')
    for path, mode in ((tmp_path / 'o.safetensors', 0o444), (tmp_path, 0o555)):
        path.chmod(mode)
        try:
            assert convert(tmp_path / 'o.safetensors') == 2
        finally:
            path.chmod(0o755)
        assert 'no permission' in capsys.readouterr().err
    assert (tmp_path / 'o.safetensors').read_bytes() == b'old'


def test_help_says_what_happens_to_an_existing_file(capsys):
    assert main(['convert-mindspore', '--help']) == 0
    text = re.sub(r'\s+', ' ', capsys.readouterr().out)
    assert 'usage: timm-drnet convert-mindspore' in text
    assert 'one that exists is replaced' in text
