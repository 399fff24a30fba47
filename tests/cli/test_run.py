"""``timm-drnet run``, with a script that tells what it was given."""

import json
import sys

import pytest

from timm_drnet.cli import main

SCRIPT = """
import argparse
import json
import sys
import warnings

import neighbour
import timm

parser = argparse.ArgumentParser()
parser.add_argument('-b', type=int)
parser.add_argument('--end')
parser.add_argument('rest', nargs='*')
args = parser.parse_args()
for category in (DeprecationWarning, FutureWarning):
    warnings.warn_explicit('old', category, 'file', 1, module='torch.onnx')
    warnings.warn('old', category)
warnings.warn('careful', UserWarning)
print(json.dumps([sys.argv[1:], args.b, __name__, neighbour.HERE, timm.is_model('drnet_resnet50')]))
if args.end == 'raise':
    open('no such file')
sys.exit({'text': 'the end', 'three': 3}.get(args.end))
"""


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scripts')
    (folder / 'neighbour.py').write_text('HERE = True\n')
    (folder / 'script.py').write_text(SCRIPT)
    return str(folder / 'script.py')


def test_script_sees_its_arguments_its_folder_and_the_models(script, capsys, recwarn):
    arguments = ['-b', '8', '--end', 'three', '--', 'DATA', '--version', '-h']
    argv, path = sys.argv, [*sys.path]
    assert main(['run', script, *arguments]) == 3
    assert json.loads(capsys.readouterr().out) == [arguments, 8, '__main__', True, True]
    assert [str(one.message) for one in recwarn] == ['careful']
    assert (sys.argv, sys.path) == (argv, path)


def test_the_help_is_the_scripts(script, capsys):
    assert main(['run', script, '--help']) == 0
    assert capsys.readouterr().out.startswith('usage: script.py [-h] [-b B]')


@pytest.mark.filterwarnings('ignore:careful')
@pytest.mark.parametrize(('end', 'told'), [
    ('text', 'the end\n'),
    ('raise', "FileNotFoundError: [Errno 2] No such file or directory: 'no such file'\n"),
])
def test_what_ends_a_script_is_told_as_python_tells_it(script, end, told, capsys):
    assert main(['run', script, '--end', end]) == 1
    err = capsys.readouterr().err
    assert err.endswith(told)
    assert 'runpy' not in err


def test_script_that_is_not_there(tmp_path, capsys):
    assert main(['run', f'{tmp_path}/train.py', '--epochs', '1']) == 2
    assert capsys.readouterr().err == (
        f"timm-drnet run: {tmp_path}/train.py: no such script; give the path of one, such as train.py in a clone of"
        " timm's repository\n")


def test_script_that_was_not_named(capsys):
    assert main(['run']) == 2
    assert 'the following arguments are required: SCRIPT;' in capsys.readouterr().err
