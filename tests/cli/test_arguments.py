"""The command line without what it runs: help, values out of range, and the constants of other modules."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import timm_drnet
from timm_drnet.bulk import engine
from timm_drnet.cli import main, parsers
from timm_drnet.cli.arguments import DEFAULT_MODEL, REDUCING_GAP
from timm_drnet.cli.bench import _DTYPES
from timm_drnet.data import pixels
from timm_drnet.deploy.export import FORMATS
from timm_drnet.deploy.manifest import PRECISIONS
from timm_drnet.evaluate import engines

COMMANDS = {
    'predict': ['IMAGE'], 'classify': ['MODEL', '--input', 'IMAGES', '--output', 'OUT'], 'validate': ['MODEL', 'DATA'],
    'analyze': ['MODEL', 'DATA', 'OUT'], 'flops': ['MODEL'], 'budget': ['MODEL', 'DATA'],
    'adapt': ['BACKBONE', 'IMAGES', '--output', 'OUT'], 'bench': ['MODEL'], 'export': ['MODEL', 'OUT'],
    'publish': ['SOURCE', 'ORG/NAME'], 'convert-mindspore': ['A', 'B', 'OUT'], 'last-checkpoint': ['FOLDER'],
    'run': ['SCRIPT']}


def test_help_and_version_do_without_pytorch():
    """As the console script: all of it in one process, in the time that each may take."""
    program = (
        'import importlib.util, json, sys, time, timm_drnet_cli\n'
        'codes = []\n'
        f'for command in {[[], *([command] for command in COMMANDS)]}:\n'
        '    sys.argv = ["timm-drnet", *command, "--help"]\n'
        '    codes.append(timm_drnet_cli.main())\n'
        'sys.argv = ["timm-drnet", "--version"]\n'
        'codes.append(timm_drnet_cli.main())\n'
        'json.dump([codes, sorted({"torch", "timm", "numpy", "PIL"} & set(sys.modules)), time.process_time()],'
        ' sys.stderr)')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    codes, imported, seconds = json.loads(done.stderr)
    assert (codes, imported) == ([0] * (len(COMMANDS) + 2), [])
    assert seconds < 0.5
    for command in COMMANDS:
        assert f'usage: timm-drnet {command}' in done.stdout
    assert done.stdout.endswith(f'timm-drnet {timm_drnet.__version__}\n')


def test_every_command_has_its_module():
    folder = Path(parsers.__file__).parent
    assert {command.replace('-', '_') for command in COMMANDS} < {path.stem for path in folder.glob('*.py')}


def test_constants_are_those_of_the_modules_that_are_not_imported():
    assert timm_drnet.DEFAULT_MODEL == DEFAULT_MODEL
    assert (FORMATS, tuple(_DTYPES), PRECISIONS) == (parsers.EXPORT_FORMATS, parsers.DTYPES, parsers.PRECISIONS)
    assert pixels.REDUCING_GAP == REDUCING_GAP
    assert parsers.ENGINES is engines.ENGINES
    assert parsers.BULK_ENGINES is engine.BULK_ENGINES


@pytest.mark.parametrize(('command', 'arguments', 'told'), [
    *((command, ['--num-classes', '0'], 'argument --num-classes: 0: use a whole number of at least 1')
      for command in ('predict', 'classify', 'validate', 'analyze', 'budget', 'publish')),
    *((command, ['--num-classes', '-1'], 'argument --num-classes: -1: use a whole number of at least 0')
      for command in ('flops', 'bench', 'export')),
    *((command, ['--seed', value], f'argument --seed: {value}: use a whole number from 0 to 2**64 - 1')
      for command in ('validate', 'analyze', 'adapt') for value in ('-1', str(2 ** 64), '1.5')),
    *((command, ['--crop-pct', value], f'argument --crop-pct: {value}: use a fraction, above 0 and up to 1')
      for command in ('validate', 'budget') for value in ('0.0', '1.5', 'nan')),
    *((command, ['-j', '-1'], 'argument -j/--workers: -1: use a whole number of at least 0')
      for command in ('validate', 'budget', 'adapt')),
    *((command, ['--reducing-gap', value], f'argument --reducing-gap: {value}: use a number of at least 1, or none')
      for command in ('predict', 'classify', 'validate') for value in ('0.5', 'inf', 'all')),
    ('predict', ['--topk', '0'], 'argument --topk: 0: use a whole number of at least 1'),
    ('predict', ['--batch-size', '-3'], 'argument --batch-size: -3: use'),
    ('classify', ['--shard-size', 'x'], 'argument --shard-size: x: use a whole number of at least 1'),
    ('classify', ['--workers', '0'], 'argument -j/--workers: 0: use a whole number of at least 1'),
    ('classify', ['--num-gpus', 'inf'], 'argument --num-gpus: inf: use a number of at least 0'),
    ('validate', ['--limit', '0'], 'argument --limit: 0: use a whole number of at least 1'),
    ('budget', ['--points', '1'], 'argument --points: 1: use a whole number of at least 2'),
    ('budget', ['--target-gflops', '0'], 'argument --target-gflops: 0: use a number above 0'),
    ('budget', ['--target-ms', 'inf'], 'argument --target-ms: inf: use a number above 0'),
    ('budget', ['--target-ms', '2', '--target-gflops', '1'], 'not allowed with argument --target-ms'),
    ('adapt', ['--epochs', '-1'], 'argument --epochs: -1: use a whole number of at least 0'),
    ('adapt', ['--target', '1.5'], 'argument --target: 1.5: use a fraction, above 0 and up to 1'),
    ('adapt', ['--resolutions', '0'], 'argument --resolutions: 0: use a whole number of at least 1'),
    ('bench', ['-b', '8', '0'], 'argument -b/--batch-size: 0: use a whole number of at least 1'),
    ('bench', ['--repeats', '0'], 'argument --repeats: 0: use'),
    ('bench', ['--threads', '100000'], f'argument --threads: 100000: use a whole number from 1 to {os.cpu_count()}'),
    ('export', ['--model-kwargs', 'num_classes=7'], '--model-kwargs num_classes=7: not for here'),
    ('export', ['--model-kwargs', 'checkpoint=x.pth'], '--model-kwargs checkpoint=x.pth: not for here'),
    ('predict', ['--model-kwargs', 'tau=2', 'photo.jpg'], '--model-kwargs photo.jpg: use KEY=VALUE'),
    ('flops', ['\x1b[2J'], r'unrecognized arguments: \x1b[2J; see timm-drnet --help'),
])
def test_values_out_of_range_are_refused_before_the_work(command, arguments, told, capsys):
    assert main([command, *COMMANDS[command], *arguments], prepare=lambda: pytest.fail('started')) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.startswith('timm-drnet')
    assert told in err
    assert err.count('\n') == 1


def test_arguments_of_a_model_are_read_as_python():
    seen = parsers.build_parser().parse_args(
        ['flops', 'drnet', '--model-kwargs', 'resolutions=(64,32)', 'backbone=a=b', 'tau=2', 'stage=pre train', 'x=(1'])
    assert seen.model_kwargs == {
        'resolutions': (64, 32), 'backbone': 'a=b', 'tau': 2, 'stage': 'pre train', 'x': '(1'}
