"""The driver that measures the paper's claims again, with a stand-in for timm's train.py."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

import timm_drnet

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples' / 'reproduce'))

import reproduce
from reproduction import comparison, files
from reproduction.beyond import LABELS
from reproduction.checkpoints import epochs_done, read_summary, settle
from reproduction.commands import Places, train_command, validate_command
from reproduction.configuration import UserError, arguments, load_configuration
from reproduction.figure import label_heights
from reproduction.paper import TABLES
from reproduction.progress import Progress
from reproduction.report import section, write_report
from reproduction.trainings import run_logged

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / 'examples' / 'reproduce'
CONFIGURATIONS = {name: load_configuration(EXAMPLE / name) for name in reproduce.CONFIGURATIONS}
TINY = CONFIGURATIONS['tiny-imagenet-100.yaml']
RESNET50 = CONFIGURATIONS['resnet50.yaml']

# GFLOPs at the largest size: half a ResNet-10-T counted by hand, layer by layer, for 64 px; the paper's ResNet-50.
LARGEST = {
    TINY.name: (331_776 + 1_769_472 + 4_718_592 + 4_718_592 + 3 * 3_670_016 + 25_600) / 1e9, RESNET50.name: 4.0892}

# What train.py does with its folder, in its order. $FAKE holds the checkpoints that it "trains", one for each epoch;
# it stops for good in the middle of epoch $FAKE_HANG of experiment $FAKE_IN, or leaves it as after Ctrl-C ($FAKE_QUIT).
FAKE_TRAIN = """
import argparse, os, pathlib, shutil, sys, time

parser = argparse.ArgumentParser()
for name in ('output', 'experiment', 'resume', 'initial-checkpoint', 'model', 'seed', 'data-dir'):
    parser.add_argument('--' + name, default='')
parser.add_argument('--epochs', type=int)
args, _ = parser.parse_known_args()
made = pathlib.Path(os.environ['FAKE'])
folder = pathlib.Path(args.output, args.experiment)
folder.mkdir(parents=True, exist_ok=True)
with (folder / 'calls.txt').open('a') as f:
    f.write(' '.join(sys.argv[1:]) + '\\n')
start = 0
if args.initial_checkpoint:
    assert pathlib.Path(args.initial_checkpoint).exists()
if args.resume:
    data = pathlib.Path(args.resume).read_bytes()
    start = 1 + next(e for e in range(9) if (made / f'{args.model}-{e}.pth.tar').read_bytes() == data)
for epoch in range(start, args.epochs):
    print(f'Train: {epoch} [   0/4 ( 25%)]  Loss: 2.3', file=sys.stderr)
    chosen = args.experiment == os.environ.get('FAKE_IN')
    if chosen and str(epoch) == os.environ.get('FAKE_HANG'):
        (folder / 'hanging').write_text(str(os.getpid()))
        time.sleep(300)
    if chosen and str(epoch) == os.environ.get('FAKE_QUIT'):
        print('the end of the log')
        break
    with (folder / 'summary.csv').open('a') as f:
        if epoch == start:
            f.write('epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\\n')
        f.write(f'{epoch},{3.0 - epoch},2.5,{40.0 + epoch},{70.0 + epoch},0.1\\n')
    shutil.copy(made / f'{args.model}-{epoch}.pth.tar', folder / 'tmp.pth.tar')
    (folder / 'last.pth.tar').unlink(missing_ok=True)
    (folder / 'tmp.pth.tar').rename(folder / 'last.pth.tar')
"""

CONFIGURATION = {
    'title': 'A test', 'setting': ['Nothing real.'], 'findings': [], 'seeds': [0, 1], 'reference': 'backbone',
    'environment': {'A': 1},
    'train': {'num_classes': 2, 'input_size': [3, 64, 64], 'lr': 0.1, 'amp': True, 'pin_mem': False, 'sched': None},
    'backbone': {'model': 'test_resnet'},
    'drnet': {
        'device_modules': ['timm_drnet'], 'model': 'drnet',
        'model_kwargs': {
            'backbone': 'test_resnet', 'resolutions': [64, 48, 32], 'predictor': 'inverted_residual',
            'predictor_size': 32},
    },
    'validate': {'batch_size': 3, 'workers': 0, 'crop_pct': 1.0, 'channels_last': False},
    'rows': {
        'backbone': {'kind': 'backbone', 'epochs': 3},
        'pretrain': {'kind': 'drnet', 'epochs': 1, 'model_kwargs': {'stage': 'pretrain'}, 'measure': False},
        'drnet': {'kind': 'drnet', 'start': 'pretrain', 'epochs': 2, 'model_kwargs': {'stage': 'joint', 'alpha': 0.5}},
        'static': {'kind': 'backbone', 'epochs': 3, 'input_size': [3, 32, 32]},
    },
}


def write_configuration(folder, **changes):
    path = folder / 'small.yaml'
    path.write_text(yaml.safe_dump({**CONFIGURATION, **changes}, sort_keys=False))
    return path


def changed_row(name, **changes):
    return {**CONFIGURATION['rows'], name: {**CONFIGURATION['rows'][name], **changes}}


@pytest.fixture
def configuration(tmp_path):
    return load_configuration(write_configuration(tmp_path))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Checkpoints of three epochs, as train.py writes them, of both kinds of models."""
    folder = tmp_path_factory.mktemp('made')
    kwargs = CONFIGURATION['drnet']['model_kwargs']
    for name, model_kwargs in (('test_resnet', {}), ('drnet', {**kwargs, 'stage': 'joint'})):
        model = timm.create_model(name, num_classes=2, **model_kwargs)
        for epoch in range(3):
            torch.save({
                'epoch': epoch, 'version': 2, 'state_dict': model.state_dict(),
                'args': argparse.Namespace(model_kwargs=model_kwargs),
            }, folder / f'{name}-{epoch}.pth.tar')
    return folder


@pytest.fixture
def start(tmp_path, made, monkeypatch):
    """Function that starts the driver in this process, on a data set of four images."""
    for split in ('train', 'validation'):
        for label, colour in (('a', 'red'), ('b', 'blue')):
            (tmp_path / 'data' / split / label).mkdir(parents=True)
            for i in range(2):
                Image.new('RGB', (64, 64), colour).save(tmp_path / 'data' / split / label / f'{i}.png')
    (tmp_path / 'train.py').write_text(FAKE_TRAIN)
    monkeypatch.setenv('FAKE', str(made))
    write_configuration(tmp_path)
    before = signal.getsignal(signal.SIGTERM)

    def start(*options):
        return reproduce.main(start.command(*options))

    start.command = lambda *options: [
        'run', str(tmp_path / 'small.yaml'), '--train-script', str(tmp_path / 'train.py'),
        '--data', str(tmp_path / 'data'), '--work', str(tmp_path / 'work'), '--results', str(tmp_path / 'results'),
        *options]
    yield start
    signal.signal(signal.SIGTERM, before)


def calls(tmp_path, name, seed=0):
    path = tmp_path / 'work' / 'small' / f'seed{seed}' / name / 'calls.txt'
    return path.read_text().splitlines() if path.exists() else []


def result(tmp_path, name, seed=0):
    return json.loads((tmp_path / 'results' / 'small' / f'{name}-seed{seed}.json').read_text())


def macs(size):
    """Multiply-accumulates of timm's test_resnet, counted by hooks on its layers."""
    total = 0

    def count(module, _, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    model = timm.create_model('test_resnet', num_classes=2).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, size, size))
    return total


# Configurations and commands.


def test_command_of_a_joint_row(configuration):
    assert train_command(configuration, 'drnet', 1) == [
        'train.py', '--data-dir', 'DATA', '--num-classes', '2', '--input-size', '3', '64', '64', '--lr', '0.1', '--amp',
        '--device-modules', 'timm_drnet', '--model', 'drnet', '--model-kwargs', 'backbone=test_resnet',
        'resolutions=(64,48,32)', 'predictor=inverted_residual', 'predictor_size=32', 'stage=joint', 'alpha=0.5',
        '--epochs', '2', '--seed', '1', '--checkpoint-hist', '1', '--output', 'WORK/small/seed1',
        '--experiment', 'drnet', '--initial-checkpoint', 'WORK/small/seed1/pretrain/last.pth.tar']
    resumed = train_command(configuration, 'drnet', 1, resume=True)
    assert resumed[-2:] == ['--resume', 'WORK/small/seed1/drnet/last.pth.tar']
    assert '--initial-checkpoint' not in resumed
    assert validate_command(configuration, 'drnet', 1) == [
        'timm-drnet', 'validate', 'drnet', 'DATA', '--checkpoint', 'WORK/small/seed1/drnet/last.pth.tar',
        '--num-classes', '2', '--seed', '1', '--batch-size', '3', '--workers', '0', '--crop-pct', '1.0',
        '--output', 'WORK/small/seed1/drnet/validation.json']


def test_commands_are_filled_in(configuration):
    places = Places(Path('/timm/train.py'), Path('/images'), Path('/scratch'))
    filled = places.fill(train_command(configuration, 'drnet', 0))
    assert filled[:4] == [sys.executable, '/timm/train.py', '--data-dir', '/images']
    assert filled[-1] == '/scratch/small/seed0/pretrain/last.pth.tar'
    assert not any('WORK' in argument or 'DATA' in argument for argument in filled)
    assert places.fill(['timm-drnet', 'validate', 'DATA'])[3:] == ['validate', '/images']


@pytest.mark.parametrize('value', [
    {'a': [1, 2], 'b': 'text', 'c': 0.25, 'd': False, 'e': None, 'f': 'None', 'g': [64], 'h': 1e-5, 'i': 'a/b'},
    *(row.options.get('model_kwargs', {}) for row in TINY.rows.values()),
])
def test_timm_reads_model_kwargs_as_they_were_meant(value):
    parser = argparse.ArgumentParser()
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=timm.utils.ParseKwargs)
    given = arguments({'model_kwargs': value}) if value else []
    read = parser.parse_args(given).model_kwargs
    assert read == {key: tuple(one) if isinstance(one, list) else one for key, one in value.items()}


@pytest.mark.parametrize(('changes', 'message'), [
    ({'extra': 1}, "'extra': missing or unknown"),
    ({'reference': 'drnet'}, "reference: 'drnet' is not a row of kind backbone"),
    ({'rows': changed_row('pretrain', start='drnet')}, "'pretrain': start: 'drnet' is not the name of a row above it"),
    ({'rows': changed_row('drnet', start='drnet')}, "'drnet': start: 'drnet' is not the name of a row above it"),
    ({'rows': changed_row('drnet', kind='other')}, "row 'drnet': kind 'other'"),
    ({'rows': changed_row('backbone', dial=[1.0])}, "row 'backbone': dial: only a drnet has one"),
    ({'rows': changed_row('drnet', resume='x')}, "row 'drnet': resume: leave it out"),
    ({'rows': changed_row('drnet', warmup_prefix=True)}, 'warmup_prefix: leave it out'),
    ({'rows': {'backbone': {'kind': 'backbone'}}}, "row 'backbone': epochs is missing"),
])
def test_bad_configurations_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_configuration(write_configuration(tmp_path, **changes))


def test_files_that_are_no_configuration_are_refused(tmp_path):
    path = tmp_path / 'small.yaml'
    for text, message in (('a: [', 'not YAML'), ('- 1', 'not a configuration')):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_configuration(path)
    with pytest.raises(UserError, match='No such file'):
        load_configuration(tmp_path / 'none.yaml')


def test_fingerprints_cover_what_can_change_a_number(tmp_path):
    def fingerprints(**changes):
        one = load_configuration(write_configuration(tmp_path, **changes))
        return one.training_fingerprint('drnet', 0), one.result_fingerprint('drnet', 0)

    training, measured = fingerprints()
    assert fingerprints(title='Another', seeds=[0]) == (training, measured)
    assert fingerprints(rows=changed_row('static', epochs=9)) == (training, measured)
    for changes in (
            {'rows': changed_row('drnet', lr=0.2)},
            {'rows': changed_row('pretrain', epochs=2)},  # it starts from there
            {'train': {**CONFIGURATION['train'], 'num_classes': 3}},
    ):
        other = fingerprints(**changes)
        assert other[0] != training
        assert other[1] != measured
    for changes in ({'validate': {'batch_size': 1}}, {'rows': changed_row('drnet', dial=[0.1])}):
        other = fingerprints(**changes)
        assert other[0] == training
        assert other[1] != measured
    one = load_configuration(write_configuration(tmp_path))
    assert one.training_fingerprint('drnet', 1) != training


def test_labels_of_points_that_lie_together_stand_apart():
    points = {
        'alone': (100.0, 36.0), 'low': (70.0, 35.5), 'middle': (70.2, 35.6), 'high': (70.1, 35.7), 'far': (70.0, 39.0)}
    heights = label_heights(points, 5.0, 0.5)
    assert heights['alone'] == 36.0
    assert heights['far'] == 39.0
    assert [heights[name] for name in ('low', 'middle', 'high')] == pytest.approx([35.1, 35.6, 36.1])


# What train.py left.


@pytest.mark.parametrize(('there', 'expected'), [
    ({}, 0),
    ({'last': 1}, 2),
    ({'last': 'torn'}, 0),
    ({'last': 'torn', 'checkpoint-0': 0}, 1),
    ({'tmp': 1}, 2),  # killed between deleting the old one and renaming the new one
    ({'tmp': 1, 'checkpoint-0': 0}, 2),
    ({'tmp': 'torn', 'last': 0}, 1),
    ({'tmp': 2, 'last': 1}, 3),
    ({'checkpoint-0': 0, 'checkpoint-1': 1}, 2),
])
def test_newest_whole_checkpoint_becomes_the_last(tmp_path, made, there, expected):
    for name, epoch in there.items():
        content = (made / f'test_resnet-{0 if epoch == "torn" else epoch}.pth.tar').read_bytes()
        (tmp_path / f'{name}.pth.tar').write_bytes(content[:-1000] if epoch == 'torn' else content)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert epochs_done(tmp_path) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert settle(tmp_path) == expected
    if expected:
        assert torch.load(tmp_path / 'last.pth.tar', weights_only=False)['epoch'] == expected - 1


def test_summary_of_a_resumed_training(tmp_path):
    header = 'epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n'
    (tmp_path / 'summary.csv').write_text(
        header + '0,3.0,1,10.100000381,20.0,.1\n1,2.0,1,11.0,21.0,.1\n'
        + header + '1,2.5,1,12.0,22.0,.1\n2,1.5,1,13.0,23.0,.1\n')
    assert [(one.epoch, one.train_loss, one.top1, one.top5) for one in read_summary(tmp_path)] == [
        (0, 3.0, 10.1, 20.0), (1, 2.5, 12.0, 22.0), (2, 1.5, 13.0, 23.0)]
    assert read_summary(tmp_path / 'none') == []


# Runs.


@pytest.mark.slow
def test_run_killed_in_the_middle_goes_on(tmp_path, start, capfd):
    """One whole life: killed, resumed, measured at two positions of the dial, asked again, changed."""
    model = timm.create_model('drnet', num_classes=2, **CONFIGURATION['drnet']['model_kwargs'])
    costs = [row.total_flops / 1e9 for row in timm_drnet.cost_table(model)]
    dialled = changed_row('drnet', dial=[costs[2], costs[0]])
    write_configuration(tmp_path, rows=dialled)
    hanging = tmp_path / 'work' / 'small' / 'seed0' / 'backbone' / 'hanging'
    with subprocess.Popen(
            [sys.executable, str(EXAMPLE / 'reproduce.py'), *start.command('--seeds', '0')], stdout=subprocess.DEVNULL,
            env={**os.environ, 'FAKE_IN': 'backbone', 'FAKE_HANG': '2'}) as process:
        try:
            while not (hanging.exists() and hanging.read_text()):
                assert process.poll() is None
                time.sleep(0.05)
        finally:
            process.kill()
    trainer = int(hanging.read_text())
    if sys.platform != 'linux':
        os.kill(trainer, signal.SIGKILL)
    assert not (tmp_path / 'results').exists()

    assert start('--seeds', '0') == 0
    with pytest.raises(ProcessLookupError):  # nobody trains in that folder any more
        os.kill(trainer, 0)
    out = capfd.readouterr().out
    assert '[1/4] backbone, seed 0: training for 3 epochs, going on after epoch 2; ' in out
    assert 'epoch 3 of 3, top-1 42.00 %' in out
    first, second = calls(tmp_path, 'backbone')
    assert '--resume' not in first
    assert second.endswith(f'--resume {tmp_path / "work"}/small/seed0/backbone/last.pth.tar')

    one = result(tmp_path, 'backbone')
    assert (one['row'], one['seed'], one['starts'], one['epochs'], one['total_epochs']) == ('backbone', 0, 2, 3, 3)
    assert (one['top1'], one['top5'], one['images'], one['fraction'], one['validation']) == (42.0, 72.0, 4, 1.0, None)
    assert one['gflops'] == macs(64) / 1e9
    assert [(h['epoch'], h['train_loss'], h['top1']) for h in one['history']] == [
        (0, 3.0, 40.0), (1, 2.0, 41.0), (2, 1.0, 42.0)]
    assert result(tmp_path, 'static')['fraction'] == macs(32) / macs(64)
    drnet = result(tmp_path, 'drnet')
    assert drnet['starts'] == 1
    assert drnet['total_epochs'] == 3
    assert drnet['images'] == 4
    assert drnet['top1'] == drnet['validation']['dynamic']['top1']  # each class has one colour
    assert drnet['validation']['seed'] == 0
    assert drnet['validation']['stage'] == 'joint'
    assert [command[0] for command in drnet['commands']] == ['train.py', 'train.py', *3 * ['timm-drnet']]
    assert drnet['commands'][-2][-3:] == ['--target-gflops', str(costs[2]), '--json']
    held = [row['held']['top1'] for row in drnet['validation']['resolutions']]
    cheap, dear = drnet['dial']
    assert (cheap['shares'], dear['shares']) == ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    assert (cheap['top1'], dear['top1']) == (held[2], held[0])
    assert [each['gflops'] for each in drnet['dial']] == pytest.approx([costs[2], costs[0]])
    assert cheap['fraction'] == pytest.approx(costs[2] * 1e9 / macs(64))
    assert drnet['versions']['timm'] == timm.__version__
    for path in (tmp_path / 'results').rglob('*'):  # what is committed names no folder of this machine
        assert path.is_dir() or str(tmp_path) not in path.read_text()
    assert sorted(path.name for path in (tmp_path / 'results' / 'small').iterdir()) == [
        f'{name}-seed0.json' for name in ('backbone', 'drnet', 'static')]

    # Nothing is left to do; then one result is missing, whose training is there.
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'results' / 'small').iterdir()}
    assert start('--seeds', '0') == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'results' / 'small').iterdir()} == before
    (tmp_path / 'results' / 'small' / 'static-seed0.json').unlink()
    shutil.rmtree(tmp_path / 'work' / 'small' / 'seed0' / 'pretrain')  # nobody needs it now
    assert start('--seeds', '0', '--dry-run') == 0
    out = capfd.readouterr().out
    assert '[1/4] backbone, seed 0: measured\n' in out
    assert '[2/4] pretrain, seed 0: not needed\n' in out
    assert '[4/4] static, seed 0: trained, not measured\n' in out
    assert start('--seeds', '0') == 0
    assert result(tmp_path, 'static')['top1'] == 42.0
    assert [len(calls(tmp_path, name)) for name in ('backbone', 'drnet', 'static', 'pretrain')] == [2, 1, 1, 0]

    # Its options change.
    write_configuration(tmp_path, rows=changed_row('drnet', dial=[costs[2]]))
    assert start('--rows', 'drnet', '--seeds', '0') == 2  # a measurement that lacks something, or has something else
    assert 'drnet-seed0.json: measured with other options' in capfd.readouterr().err
    write_configuration(tmp_path, rows={**dialled, 'backbone': {**CONFIGURATION['rows']['backbone'], 'lr': 0.3}})
    assert start('--seeds', '0') == 2
    error = capfd.readouterr().err
    path = tmp_path / 'results' / 'small' / 'backbone-seed0.json'
    assert f'{path}: measured with other options' in error
    assert 'delete this file' in error
    path.unlink()
    assert start('--seeds', '0') == 2
    assert f'{tmp_path / "work" / "small" / "seed0" / "backbone"}: trained with other options' in capfd.readouterr().err
    assert len(calls(tmp_path, 'backbone')) == 2


def test_rows_of_a_seed_come_before_the_next_seed(tmp_path, start, capsys):
    assert start('--dry-run') == 0
    steps = re.findall(r'^\[(\d)/8\] (\S+), seed (\d): (.+)$', capsys.readouterr().out, flags=re.MULTILINE)
    assert steps == [
        (str(i + 4 * seed + 1), name, str(seed), 'to do')
        for seed in (0, 1) for i, name in enumerate(('backbone', 'pretrain', 'drnet', 'static'))]
    assert start('--dry-run', '--rows', 'drnet', '--seeds', '1') == 0
    assert re.findall(r'^\[\d/2\] (\S+, seed \d)', capsys.readouterr().out, flags=re.MULTILINE) == [
        'pretrain, seed 1', 'drnet, seed 1']
    assert not (tmp_path / 'work').exists()
    for option, value in (('--rows', 'other'), ('--seeds', '7')):
        assert start(option, value) == 2
        assert f'{option} {value}: use of ' in capsys.readouterr().err


def test_training_that_ends_early_is_no_result(tmp_path, start, monkeypatch, capsys):
    monkeypatch.setenv('FAKE_IN', 'backbone')
    monkeypatch.setenv('FAKE_QUIT', '1')
    assert start('--rows', 'backbone', '--seeds', '0') == 1
    error = capsys.readouterr().err
    assert 'exit code 0 after 1 of 3 epochs of backbone, seed 0' in error
    assert error.rstrip().endswith('the end of the log')
    assert not (tmp_path / 'results').exists()
    monkeypatch.delenv('FAKE_QUIT')
    assert start('--rows', 'backbone', '--seeds', '0') == 0
    assert result(tmp_path, 'backbone')['starts'] == 2


def test_interrupted_run_takes_its_training_along(tmp_path, start):
    """As on Ctrl-C, and on SIGTERM, which does the same."""
    seen = []

    def interrupt(line):
        seen.append(int(line))
        raise KeyboardInterrupt

    code = 'import os, time; print(os.getpid()); time.sleep(300)'
    with (tmp_path / 'lock').open('w') as lock, pytest.raises(KeyboardInterrupt):
        run_logged([sys.executable, '-c', code], tmp_path / 'log', {}, lock.fileno(), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
    assert start('--rows', 'pretrain', '--seeds', '0') == 0
    with pytest.raises(KeyboardInterrupt):
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)


def test_last_checkpoint_under_its_wrong_name(tmp_path, start):
    assert start('--rows', 'pretrain', '--seeds', '0') == 0
    folder = tmp_path / 'work' / 'small' / 'seed0' / 'pretrain'
    (folder / 'last.pth.tar').rename(folder / 'tmp.pth.tar')
    assert start('--rows', 'pretrain', '--seeds', '0') == 0
    assert (folder / 'last.pth.tar').exists()
    assert len(calls(tmp_path, 'pretrain')) == 1


def test_checkpoints_of_unknown_origin_are_refused(tmp_path, start, made, capsys):
    folder = tmp_path / 'work' / 'small' / 'seed0' / 'backbone'
    folder.mkdir(parents=True)
    shutil.copy(made / 'test_resnet-2.pth.tar', folder / 'last.pth.tar')
    assert start('--rows', 'backbone', '--seeds', '0') == 2
    assert f'{folder}: holds checkpoints but no reproduce.json' in capsys.readouterr().err


def test_one_run_at_a_time(tmp_path, start, monkeypatch, capsys):
    monkeypatch.setattr(files, '_PATIENCE', 0.0)
    with files.alone_in(tmp_path / 'work' / 'small'):
        assert start('--rows', 'backbone') == 2
    assert f'another run is at work there (started by process {os.getpid()})' in capsys.readouterr().err
    assert not calls(tmp_path, 'backbone')


@pytest.mark.parametrize(('option', 'value'), [('--train-script', 'none.py'), ('--data', 'none')])
def test_missing_files_are_told(start, capsys, option, value):
    assert start(option, value) == 2
    assert f'{option} {value}: no such ' in capsys.readouterr().err


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'a.json'
    files.write_json(path, {'old': 1})
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {'new': 2})
    assert json.loads(path.read_text()) == {'old': 1}
    assert list(tmp_path.iterdir()) == [path]


def test_time_left(configuration, capsys):
    """120 s an epoch for the backbone; the stages, not known yet, are taken to go at the average pace."""
    rows = configuration.rows
    progress = Progress(4, [(rows['backbone'], 3), (rows['pretrain'], 1), (rows['static'], 3)], {})
    progress.begin(1, rows['backbone'], 0, 0)
    progress.epoch_ended(1, 120.0, 12.5)
    progress.epoch_ended(2, 120.0, None)
    progress.end()
    progress.begin(2, rows['pretrain'], 0, 0)
    progress.epoch_ended(1, 360.0, 13.0)  # the average pace is now 240 s
    assert capsys.readouterr().out.splitlines() == [
        '[1/4] backbone, seed 0: training for 3 epochs; time left is known after the first epoch',
        '[1/4] backbone, seed 0: epoch 1 of 3, top-1 12.50 %, 120 s; about 12 min left',
        '[1/4] backbone, seed 0: epoch 2 of 3, 120 s; about 10 min left',
        '[2/4] pretrain, seed 0: training for 1 epoch; about 8 min left',
        '[2/4] pretrain, seed 0: epoch 1 of 1, top-1 13.00 %, 360 s; about 12 min left']


# The report.


def canned(
        configuration, name, seed, top1, fraction=1.0, shares=None, held=None, lots=None, images=2500,
        dial=(1.0, 1.0, 1.0)):
    """A result as a run writes it, as far as the report reads it; accuracies in per cent."""
    validation = None
    if shares:
        validation = {
            'resolutions': [
                {'share': share, 'held': {'top1': one, 'fraction': cost}}
                for share, one, cost in zip(shares, held, (1.0, 0.5, 0.25), strict=True)],
            'random': {'mean': {'top1': lots, 'fraction': fraction - 0.1}},
        }
    return {
        'row': name, 'seed': seed, 'fingerprint': configuration.result_fingerprint(name, seed), 'top1': top1,
        'fraction': fraction, 'images': images, 'seconds': 600.0, 'starts': 1 + seed, 'validation': validation,
        'versions': {'torch': '9.8', 'timm': '7.6'}, 'machine': {'gpu': None, 'cores': 2, 'processor': 'Abacus'},
        'dial': [{'top1': one, 'fraction': 0.5, 'shares': (0.0, 1.0, 0.0)} for one in dial],
    }


def cells(text, first):
    """The cells of the table rows that begin with some text."""
    return [line.strip('| ').split(' | ')[1:] for line in text.splitlines() if line.startswith(f'| {first}')]


def test_report_over_three_seeds():
    def routed(name, seed, top1, fraction):
        return canned(TINY, name, seed, top1, fraction, (0.5, 0.25, 0.25), (50.0, 40.0, 36.0), top1 - 1)

    results = {
        'backbone': [canned(TINY, 'backbone', i, top1) for i, top1 in enumerate((40.0, 42.0, 44.0))],
        'drnet': [routed('drnet', i, 45.0 + i, 0.80 + 0.02 * i) for i in range(3)],
        'alpha-2.5': [routed('alpha-2.5', i, 42.0 + i, 0.6) for i in range(3)],
        'alpha-2.5-shared': [routed('alpha-2.5-shared', i, 46.0 + i, 0.6) for i in range(3)],
    }
    text = section(TINY, results)
    # Table 1 (and 4): mean and sample deviation; 4.1 / 4.0892 and 2.8 / 4.0892.
    assert cells(text, 'backbone alone, largest size')[0] == [
        '4.1 G = 100 %', '78.5 %', '100.0 ± 0.0 %', '42.00 ± 2.00 %', '3']
    assert cells(text, 'DRNet, eta = 0.2, alpha = 2.5')[0] == [
        '2.8 G = 68 %', '81.4 %', '60.0 ± 0.0 %', '43.00 ± 1.00 %', '3']
    # Standard errors: 2 / sqrt(3) of the backbone, 1 / sqrt(3) of the others; FLOPs of the DRNet 2 / sqrt(3).
    assert cells(text, 'A DRNet is more accurate') == [['+4.00 points of top-1', '+4.00 ± 1.29', '**held**']]
    assert cells(text, 'It costs less. ') == [['+17.12 points of FLOPs', '+18.00 ± 1.15', '**held**']]
    assert cells(text, 'With a FLOPs loss') == [['+2.90 points of top-1', '+1.00 ± 1.29', '**not distinguishable**']]
    assert cells(text, 'Norms for each') == [['+1.10 points of top-1', '-4.00 ± 0.82', '**did not hold**']]
    # Table 5: each resolution equally often is (50 + 40 + 36) / 3 at (1 + 1/2 + 1/4) / 3 of the FLOPs.
    assert cells(text, 'lots, each resolution equally often') == [
        ['2.6 G = 64 %', '74.65 %', '58.3 ± 0.0 %', '42.00 ± 0.00 %', '3']]
    assert cells(text, 'The predictor is better') == [['+2.85 points of top-1', '+4.00 ± 0.58', '**held**']]
    assert cells(text, 'Better than lots at the same shares (no FLOPs loss)') == [['-', '+1.00 ± 0.82', '**held**']]
    # Rows without results.
    assert cells(text, 'DRNet, alpha = 2.0')[0][2:] == ['not measured yet', 'not measured yet', '0']
    assert cells(text, 'A larger alpha costs more')[0][1:] == ['', 'not measured yet']
    assert 'Hardware: 2 cores of Abacus; torch 9.8, timm 7.6.' in text
    # 12 results of 10 minutes; seeds 1 and 2 were started more than once.
    assert 'Measured: 12 of 36 (row, seed), in 2 h 00 min of training' in text
    assert '8 trainings were interrupted' in text
    assert 'Epochs: 6 for every row (3 + 3, or 6).' in text
    assert '--rows backbone drnet alpha-2.5 alpha-2.5-shared`' in text


def test_report_of_one_seed_takes_the_error_of_the_images():
    results = {
        'static': [canned(TINY, 'static', 0, 50.0, 0.65)],
        'alpha-2.0': [canned(TINY, 'alpha-2.0', 0, 52.0, 0.6, (0.5, 0.0, 0.5), (50.0, 40.0, 36.0), 52.0)],
    }
    text = section(TINY, results)
    assert cells(text, 'DRNet, alpha = 2.0')[0][2:] == ['60.0 %', '52.00 %', '1']
    # sqrt(50 * 50 / 2500 + 52 * 48 / 2500)
    assert cells(text, 'The DRNet is more accurate than the smaller')[0][1:] == [
        '+2.00 ± 1.41', '**held (one seed)**']
    # Half of the images at 100 %, half at 25 %: a deviation of 37.5 points, over sqrt(2500).
    assert cells(text, 'It costs less (alpha = 2.0)')[0][1:] == ['+5.00 ± 0.75', '**held (one seed)**']
    assert cells(text, 'Better than lots at the same shares (alpha = 2.0)')[0][1:] == [
        '+0.00 ± 1.41', '**not distinguishable (one seed)**']


def test_report_beyond_the_paper():
    def routed(name, seed, *dial):
        return canned(TINY, name, seed, 40.0 + seed, 0.8, (0.25, 0.75, 0.0), (41.0, 40.0, 36.25), 39.0, dial=dial)

    results = {
        'alpha-2.0': [routed('alpha-2.0', i, 30.0 + i, 40.0, 40.0) for i in range(3)],
        'all-resolutions': [routed('all-resolutions', i, 33.0 + i, 40.0, 39.0) for i in range(3)],
    }
    text = section(TINY, results)
    assert cells(text, 'trained at all resolutions') == [
        ['80.0 ± 0.0 %', '41.00 ± 1.00 %', '34.00 ± 1.00 %', '40.00 ± 0.00 %', '39.00 ± 0.00 %', '3']]
    assert cells(text, 'Training at all resolutions beats the paper, alpha = 2.0, by the dial at 0.0113') == [
        ['-', '+3.00 ± 0.82', '**held**']]
    assert cells(text, 'Training at all resolutions beats the paper, alpha = 2.0, by the dial at 0.0181') == [
        ['-', '-1.00 ± 0.00', '**did not hold**']]
    assert cells(text, 'Training at all resolutions beats the paper, without FLOPs loss')[0] == [
        '-', '', 'not measured yet']
    assert cells(text, '`all-resolutions`') == [['25/75/0, 25/75/0, 25/75/0', ', '.join(3 * ['41.0/40.0/36.2'])]]
    assert 'Beyond the paper' not in section(RESNET50, {})


def test_written_report(tmp_path, monkeypatch, capsys):
    results = tmp_path / 'results'
    for name, seed in (('backbone', 0), ('drnet', 0), ('drnet', 1)):
        one = canned(TINY, name, seed, 40.0, 0.8, (1.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1.0)
        files.write_json(results / TINY.name / f'{name}-seed{seed}.json', one)
    page = tmp_path / 'docs' / 'page.md'
    assert reproduce.main(['report', '--results', str(results), '--output', str(page)]) == 0
    text = page.read_text()
    assert '](page/tiny-imagenet-100.svg)' in text
    assert text.index(TINY.title) < text.index(RESNET50.title) < text.index('Not measured yet.')
    drawing = (tmp_path / 'docs' / 'page' / 'tiny-imagenet-100.svg').read_text()
    assert {'backbone', 'drnet'} == {name for name in TINY.rows if f'>{name}<' in drawing}
    assert len(drawing) < 50_000
    first = page.read_bytes(), drawing.encode()
    write_report([TINY, RESNET50], results, page)
    assert (page.read_bytes(), (tmp_path / 'docs' / 'page' / 'tiny-imagenet-100.svg').read_bytes()) == first

    path = results / TINY.name / 'drnet-seed0.json'
    files.write_json(path, {**files.read_json(path), 'fingerprint': 'other'})
    assert reproduce.main(['report', '--results', str(results), '--output', str(page)]) == 2
    assert f'{path}: measured with other options' in capsys.readouterr().err


def test_committed_report_is_that_of_the_committed_results(tmp_path):
    write_report([TINY, RESNET50], EXAMPLE / 'results', tmp_path / 'results.md')
    committed = (ROOT / 'docs' / 'results.md').read_text(encoding='utf-8')
    assert (tmp_path / 'results.md').read_text(encoding='utf-8') == committed, 'run reproduce.py report'


def test_noise_of_verdicts():
    def verdict(points, error, single=False):
        return comparison.Difference(points, error, single).verdict

    assert verdict(1.0, 0.9) == 'held'
    assert verdict(1.0, 1.0) == verdict(-1.0, 1.0) == verdict(0.0, 0.0) == 'not distinguishable'
    assert verdict(-1.0, 0.9) == 'did not hold'
    assert verdict(-1.0, 0.9, single=True) == 'did not hold (one seed)'


# The two configurations. That train.py has all their options cannot be seen here: its wheel lacks it.


@pytest.mark.parametrize('configuration', [TINY, RESNET50], ids=lambda c: c.name)
def test_every_row_of_the_tables_is_trained_for_as_long(configuration):
    wanted = {row.row for table in TABLES for row in table.rows}
    wanted |= {name for table in TABLES for claim in table.claims for name, _ in (claim.above, claim.below)}
    wanted |= {name for name in LABELS if name in configuration.rows}
    measured = {name for name, row in configuration.rows.items() if row.measured}
    assert measured == wanted
    assert len({configuration.total_epochs(name) for name in measured}) == 1
    assert len(configuration.seeds) == 3
    for name in measured:
        chain = configuration.chain(name)
        shared = [row.options.get('model_kwargs', {}).get('resolution_aware_norm', True) for row in chain]
        assert len(set(shared)) == 1  # both stages have the same norms
        if chain[-1].kind == 'drnet':
            assert [row.options['model_kwargs']['stage'] for row in chain] == ['pretrain', 'joint']


@pytest.mark.parametrize('configuration', [TINY, RESNET50], ids=lambda c: c.name)
def test_targets_are_the_paper_s_share_of_the_largest(configuration):
    paper = {
        'alpha-2.0': (2.0, 0.2), 'alpha-2.5': (2.5, 0.2), 'alpha-2.5-shared': (2.5, 0.2), 'alpha-3.0': (3.0, 0.2),
        'alpha-3.5': (3.5, 0.2), 'eta-0.1': (3.0, 0.1), 'eta-0.5': (3.0, 0.5), 'eta-1.0': (3.0, 1.0),
        'all-resolutions': (2.0, 0.2)}
    for name, row in configuration.rows.items():
        kwargs = row.options.get('model_kwargs', {})
        if name not in paper:
            assert 'alpha' not in kwargs
            continue
        alpha, eta = paper[name]
        assert kwargs['alpha'] == pytest.approx(alpha / 4.0892 * LARGEST[configuration.name], rel=1e-3)
        assert kwargs['eta'] == eta


@pytest.mark.parametrize(('configuration', 'predictor'), [(TINY, 1_618_720 / 1e9), (RESNET50, 0.2902)])
def test_models_cost_what_the_targets_are_a_share_of(configuration, predictor):
    options = configuration.rows['drnet'].options
    model = timm.create_model(options['model'], num_classes=100, **options['model_kwargs'])
    table = timm_drnet.cost_table(model)
    assert table[0].backbone_flops / 1e9 == pytest.approx(LARGEST[configuration.name], rel=1e-3)
    assert table[0].predictor_flops / 1e9 == pytest.approx(predictor, rel=1e-3)
    assert options['input_size'] == [3, model.resolutions[0], model.resolutions[0]]
    plain = configuration.rows['backbone'].options
    backbone = timm.create_model(plain['model'], num_classes=100, **plain.get('model_kwargs', {}))
    assert {k: v.shape for k, v in backbone.named_parameters()} == {
        k: v.shape for k, v in model.branch(0).named_parameters()}


@pytest.mark.parametrize(('name', 'recipe'), [('pretrain', '1-pretrain'), ('alpha-2.5', '2-joint')])
def test_resnet50_is_trained_as_in_the_recipes(name, recipe):
    path = ROOT / 'examples' / 'recipes' / 'imagenet' / f'drnet_resnet50-{recipe}.yaml'
    expected = yaml.safe_load(path.read_text())
    for key in ('checkpoint_hist', 'output', 'experiment', 'seed'):  # reproduce.py's own
        expected.pop(key)
    assert RESNET50.rows[name].options == {**expected, 'num_classes': 100}
