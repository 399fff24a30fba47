"""What commands print, and the streams, signals and folders around them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from timm_drnet.cli.output import Column, printable, table

# The real command line, with a command that does in no time what the others do after long work.
PROGRAM = """
import importlib.util, sys, types
spec = importlib.util.find_spec('timm_drnet')
sys.modules['timm_drnet'] = importlib.util.module_from_spec(spec)  # as the console script: without PyTorch
from pathlib import Path
from tqdm import tqdm
from timm_drnet.cli import main
from timm_drnet.cli.output import UserError, show, tell
from timm_drnet.data.output_folder import staged, staged_file

def run(args):
{body}
    return 0

sys.modules['timm_drnet.cli.flops'] = types.SimpleNamespace(run=run)
sys.exit(main(['flops', 'MODEL']))
"""


def start(body, redirections='', encoding='utf-8', **kwargs):
    """Start a command whose work is a body of Python, by a shell."""
    program = PROGRAM.format(body='\n'.join(f'    {line}' for line in body.splitlines()))
    return subprocess.Popen(
        ['sh', '-c', f'exec "$0" -c "$1" {redirections}', sys.executable, program], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, encoding='utf-8',
        env={**os.environ, 'PYTHONIOENCODING': encoding, 'PYTHONUNBUFFERED': ''}, **kwargs)


def run(body, redirections='', **kwargs):
    """Run it: exit code, stdout, stderr."""
    process = start(body, redirections, **kwargs)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


WORK = """
for _ in tqdm(range(2), desc='work', disable=False, leave=False):
    show('progress')
with staged(Path.cwd() / 'saved') as folder:
    (folder / 'model').write_text('trained')
show('result')
tell('flops', 'note')
"""


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs Linux')
@pytest.mark.parametrize(('redirections', 'code', 'out', 'err'), [
    ('2>/dev/null', 0, 'progress\nprogress\nresult\n', ''),
    ('2>&-', 0, 'progress\nprogress\nresult\n', ''),
    ('2>/dev/full', 0, 'progress\nprogress\nresult\n', ''),
    ('>&- 2>&-', 0, '', ''),
    ('<&- >&-', 0, '', 'timm-drnet flops: note\n'),
    ('>/dev/full', 2, '',
     'timm-drnet flops: note\ntimm-drnet: cannot write to standard output: No space left on device\n'),
])
def test_closed_and_full_streams_do_not_end_the_work(redirections, code, out, err, tmp_path):
    found = run(WORK, redirections, cwd=tmp_path)
    assert found[:2] == (code, out), found[2]
    assert found[2].endswith(err)  # behind the bar
    assert (tmp_path / 'saved/model').read_text() == 'trained'
    assert [path.name for path in tmp_path.iterdir()] == ['saved']


def test_files_do_not_get_the_numbers_of_closed_streams(tmp_path):
    """What a library writes to its standard output must not come into them."""
    body = (
        'import os\n'
        'with open("model", "w") as file:\n'
        '    for number in (1, 2):\n'
        '        os.write(number, b"noise")\n'
        '    file.write("trained")')
    assert run(body, '>&- 2>&-', cwd=tmp_path)[0] == 0
    assert (tmp_path / 'model').read_text() == 'trained'


def test_closed_pipe_is_quiet(tmp_path):
    process = start('import time; time.sleep(0.5)\n' + WORK, '2>err', cwd=tmp_path)
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert 'Error' not in (tmp_path / 'err').read_text()
    assert (tmp_path / 'saved/model').read_text() == 'trained'


def test_encodings_that_lack_a_character():
    for encoding in ('utf-8:strict', 'ascii'):
        found = run(r"show('caf\udce9 \x1b[2J\n', 'é')", encoding=encoding)
        assert found == (0, 'caf\\udce9 \\x1b[2J\\n\n' + ('é\n' if encoding.startswith('utf') else '\\xe9\n'), '')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_nothing_behind(tmp_path, number):
    # Many short waits: Python answers a signal between two instructions, and one that arrives on the way into the
    # system call of a long wait is not seen before that wait is over.
    body = (
        'import time\n'
        'with staged(Path.cwd() / "out") as folder:\n'
        '    show("ready")\n'
        '    for _ in range(3000):\n'
        '        time.sleep(0.02)')
    process = start(body, cwd=tmp_path)
    assert process.stdout.readline() == 'ready\n'
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    assert process.communicate(timeout=60) == ('', '')
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_ignored_signal_stays_ignored(tmp_path):
    program = 'import os, signal; os.kill(os.getpid(), signal.SIGHUP); show("alive")'
    process = start(program, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))  # as nohup does
    assert process.communicate(timeout=60) == ('alive\n', '')


@pytest.mark.parametrize(('body', 'told'), [
    ('with staged(Path("out").absolute()) as folder:\n    raise OSError(28, "No space left on device")',
     '{tmp}/out: No space left on device'),
    ('with staged_file(Path("out\\n.txt")) as file:\n    file.write_text("half"); (file / "x").write_text("")',
     r'out\n.txt: Not a directory'),
    ('Path("nowhere").read_text()', 'nowhere: No such file or directory'),
    ('raise UserError("\\x1b[2J: give another")', r'\x1b[2J: give another'),
])
def test_errors_are_told_in_one_line(body, told, tmp_path):
    assert run(body, cwd=tmp_path) == (2, '', f'timm-drnet flops: {told.format(tmp=tmp_path)}\n')
    assert list(tmp_path.iterdir()) == []


def test_printable():
    assert printable('Crème brûlée 苹果 ± …') == 'Crème brûlée 苹果 ± …'
    assert printable('a\nb\x1b[31m\udcff\x7f\u202e') == r'a\nb\x1b[31m\udcff\x7f\u202e'


def test_table():
    columns = [Column('image'), Column('size', '.0f', 'px'), Column('share', '.1f', '%'), Column('note')]
    rows = [('a\n.png', 64, 2.25, ''), ('long name', 224, '1.0 ± 0.5 %', None), ('c', None, 100.0, 'x')]
    assert table(columns, rows) == [
        'image        size        share  note',
        'a\\n.png     64 px        2.2 %',
        'long name  224 px  1.0 ± 0.5 %  -',
        'c               -      100.0 %  x']
