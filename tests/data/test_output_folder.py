"""Output folders and files, written whole or not at all; what is refused."""

import os
import re
import shutil
import stat
import tempfile

import pytest

from timm_drnet.data import output_folder
from timm_drnet.data.output_folder import OutputError, check_output_file, check_output_folder, staged, staged_file


def content(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def test_folder_appears_when_it_is_complete(tmp_path):
    with staged(tmp_path / 'out') as folder:
        (folder / 'a.txt').write_text('a')
        assert not (tmp_path / 'out').exists()
    assert content(tmp_path) == ['out', 'out/a.txt']
    assert (tmp_path / 'out/a.txt').read_text() == 'a'


def test_file_appears_when_it_is_complete(tmp_path):
    (tmp_path / 'out.json').write_text('old')
    (tmp_path / 'link.json').symlink_to('out.json')
    with staged_file(tmp_path / 'link.json') as file:
        file.write_text('new')
        assert file.suffix == '.json'
        assert (tmp_path / 'out.json').read_text() == 'old'
    assert content(tmp_path) == ['link.json', 'out.json']
    assert (tmp_path / 'link.json').is_symlink()
    assert (tmp_path / 'out.json').read_text() == 'new'


@pytest.mark.parametrize('writer', [staged, staged_file])
@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_remains_of_a_failure(tmp_path, error, writer):
    if writer is staged:
        (tmp_path / 'out').mkdir()
    else:
        (tmp_path / 'out').write_text('old')

    def fail():
        with writer(tmp_path / 'out') as staging:
            (staging / 'a.txt' if writer is staged else staging).write_text('a')
            raise error

    with pytest.raises(error):
        fail()
    assert content(tmp_path) == ['out']
    assert writer is staged or (tmp_path / 'out').read_text() == 'old'


@pytest.mark.parametrize('writer', [staged, staged_file])
def test_errors_of_the_system_name_the_target(tmp_path, writer):
    def fail(act):
        with writer(tmp_path / 'out') as staging:
            act(staging)

    def full(staging):
        raise OSError(28, 'No space left on device')

    for act, name in (
            (full, 'out'), (lambda staging: (staging / 'a/b').write_text(''), 'out'),
            (lambda staging: (tmp_path / 'input').read_text(), 'input')):
        with pytest.raises(OSError, match='.') as error:
            fail(act)
        assert error.value.filename == str(tmp_path / name)
    assert content(tmp_path) == []


def test_folder_that_was_filled_meanwhile_is_kept(tmp_path):
    target = check_output_folder(tmp_path / 'out')

    def fill():
        with staged(target) as folder:
            (folder / 'a.txt').write_text('a')
            target.mkdir()
            (target / 'mine.txt').write_text('precious')

    with pytest.raises(OSError, match='not empty'):
        fill()
    assert content(tmp_path) == ['out', 'out/mine.txt']


def test_permissions_are_those_of_the_umask(tmp_path):
    """Some libraries write files, and make folders, that only their owner can read."""
    (tmp_path / 'old.txt').write_text('old')
    (tmp_path / 'old.txt').chmod(0o604)
    before = os.umask(0o027)
    try:
        with staged(tmp_path / 'out') as folder:
            descriptor, _ = tempfile.mkstemp(dir=folder)
            os.close(descriptor)
        for name in ('new.txt', 'old.txt'):
            with staged_file(tmp_path / name) as file:
                file.unlink()
                os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (
        tmp_path / 'out', next((tmp_path / 'out').iterdir()), tmp_path / 'new.txt', tmp_path / 'old.txt')]
    assert [oct(mode) for mode in modes] == [oct(mode) for mode in (0o750, 0o640, 0o640, 0o604)]


def test_pipe_is_written_as_it_is(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    with staged_file(check_output_file(tmp_path / 'pipe')) as file:
        file.write_text('through')
    assert os.read(reader, 100) == b'through'
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)


@pytest.mark.parametrize(('check', 'name', 'told'), [
    (check_output_folder, 'no/such', 'there is no folder .*/no; create it first'),
    (check_output_folder, 'file', 'this is a file or a link; name a new folder'),
    (check_output_folder, 'link', 'this is a file or a link; name a new folder'),
    (check_output_folder, 'full', 'this folder is not empty; name a new one'),
    (check_output_folder, '.', 'this folder cannot be replaced; name a new one, such as one in it'),
    (check_output_file, 'no/such', 'there is no folder .*/no; create it first'),
    (check_output_file, 'full', 'this is a folder; name a file'),
])
def test_what_is_no_place_for_it_is_refused(tmp_path, monkeypatch, check, name, told):
    (tmp_path / 'here').mkdir()
    (tmp_path / 'full/inner').mkdir(parents=True)
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'link').symlink_to('nowhere')
    monkeypatch.chdir(tmp_path / 'here')
    with pytest.raises(OutputError, match=f'Invalid --output .*: {told}'):
        check(tmp_path / name if name != '.' else '.', '--output')


@pytest.mark.parametrize('check', [check_output_folder, check_output_file])
def test_disks_that_cannot_be_written_are_noticed_before_the_work(tmp_path, monkeypatch, check):
    free = shutil.disk_usage(tmp_path).free
    assert check(tmp_path / 'out', size=free // 2) == tmp_path / 'out'
    with pytest.raises(OutputError, match=r'No space left on device in .* MB needed\); name a place on another disk'):
        check(tmp_path / 'out', size=2 * free)

    def read_only(*args, dir):
        assert dir == tmp_path
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(output_folder.tempfile, 'TemporaryFile', read_only)
    with pytest.raises(OutputError, match=f'Invalid out {re.escape(str(tmp_path))}/out: Read-only file system in'):
        check(tmp_path / 'out')
    assert content(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_no_permission(tmp_path):
    (tmp_path / 'old').write_text('old')
    (tmp_path / 'old').chmod(0o444)
    with pytest.raises(OutputError, match='no permission to write; name another file'):
        check_output_file(tmp_path / 'old')
    tmp_path.chmod(0o555)
    try:
        for check in (check_output_folder, check_output_file):
            with pytest.raises(OutputError, match='Permission denied in'):
                check(tmp_path / 'new')
    finally:
        tmp_path.chmod(0o755)
