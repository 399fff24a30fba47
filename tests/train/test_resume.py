"""Training that is killed and goes on: what it ends with, and what it never reads."""

import itertools
import json
import os
import random
import shutil
import signal
import statistics
import time
import zipfile

import pytest
import timm
import torch
from processes import CONTEXT
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from training_program import STEPS, make_model, train

from timm_drnet.cli import main
from timm_drnet.train.resume import CheckpointError, check_checkpoint, last_checkpoint

EPOCHS = 12
MANY = 30  # more than the ten get through before they are killed
KILLS = 10


def run_through(folder, epochs):
    """A run that nobody kills."""
    process = CONTEXT.Process(target=train, args=(folder, epochs))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0
    return folder


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """Folder of such a run."""
    return run_through(tmp_path_factory.mktemp('uninterrupted'), EPOCHS)


def read_steps(folder):
    """Epoch, step and learning rates."""
    return [json.loads(line)[:3] for line in (folder / 'steps.jsonl').read_text().splitlines()]


def step_time(folder):
    """Seconds of a step, median."""
    times = [json.loads(line)[3] for line in (folder / 'steps.jsonl').read_text().splitlines()]
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def read_last(folder):
    return torch.load(folder / 'last.pth.tar', weights_only=False)


def assert_same(one, other, at=''):
    """Two checkpoints are equal, every tensor to the last bit."""
    assert type(one) is type(other), at
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), at
        assert one.isfinite().all(), at
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), at
        for key in one:
            assert_same(one[key], other[key], f'{at}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), at
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f'{at}[{i}]')
    else:
        assert one == other, at


def wait_for_steps(folder, number, process):
    """Until the run has reported so many steps."""
    report, deadline = folder / 'steps.jsonl', time.monotonic() + 120
    while not report.exists() or report.read_bytes().count(b'\n') < number:
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_run_killed_ten_times_ends_as_one_that_was_not(tmp_path_factory, tmp_path):
    uninterrupted = run_through(tmp_path_factory.mktemp('many'), MANY)
    chance, steps, kills = random.Random(0), 0, 0
    while True:
        found = last_checkpoint(tmp_path)
        process = CONTEXT.Process(target=train, args=(tmp_path, MANY, found and found.path))
        process.start()
        if kills == KILLS:
            process.join(timeout=300)
            break
        # From the first step to well into the second epoch, and then anywhere within a step or a checkpoint.
        wait_for_steps(tmp_path, steps + chance.randint(1, STEPS + 2), process)
        time.sleep(chance.uniform(0, 2 * step_time(uninterrupted)))
        process.kill()
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL
        steps, kills = len(read_steps(tmp_path)), kills + 1
    assert process.exitcode == 0

    # The last report of each step is the one that counted. Learning rates and their order are those of the schedule.
    reported, expected = read_steps(tmp_path), read_steps(uninterrupted)
    assert [(e, s) for e, s, _ in expected] == list(itertools.product(range(MANY), range(STEPS)))
    assert len(reported) > len(expected)  # steps were repeated, so the kills did lose some
    assert {(e, s): rates for e, s, rates in reported} == {(e, s): rates for e, s, rates in expected}

    one, other = read_last(tmp_path), read_last(uninterrupted)
    for key in ('epoch', 'state_dict', 'state_dict_ema', 'optimizer'):
        assert_same(one[key], other[key], key)
    assert any(key.startswith('predictor.') for key in one['state_dict'])
    assert one['epoch'] == MANY - 1


def test_uninterrupted_run_moves_what_it_is_compared_by(uninterrupted):
    """Or equality would mean nothing."""
    last = read_last(uninterrupted)
    rates = [step[2][0] for step in read_steps(uninterrupted)]
    assert rates[0] == 1e-4
    assert max(rates) > 0.9 * 0.05
    assert rates[-1] < 0.01 * 0.05
    assert len(set(rates)) > 0.9 * len(rates)
    start = make_model().state_dict()
    unmoved = {key for key, value in last['state_dict'].items() if torch.equal(value, start[key])}
    assert not unmoved


def die_while_saving(folder, epochs, resume, moment):
    """A run that kills itself at a given moment of saving its second checkpoint."""
    save, replace, link, saved = torch.save, os.replace, os.link, []

    def save_half(state, path):
        save(state, path)
        saved.append(path)
        if len(saved) == 2 and moment == 'in the file':
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def replace_never(*args):
        if len(saved) == 2 and moment == 'before it changes names':
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)

    def link_never(*args):
        if len(saved) == 2 and moment == 'before it is linked':
            os.kill(os.getpid(), signal.SIGKILL)
        link(*args)

    torch.save, os.replace, os.link = save_half, replace_never, link_never
    train(folder, epochs, resume)


@pytest.mark.parametrize(('moment', 'name', 'epochs'), [
    ('in the file', 'last.pth.tar', 1),  # the one before
    ('before it changes names', 'tmp.pth.tar', 2),  # last.pth.tar is gone by then
    ('before it is linked', 'last.pth.tar', 2),
])
def test_run_killed_while_it_saves(uninterrupted, tmp_path, moment, name, epochs):
    process = CONTEXT.Process(target=die_while_saving, args=(tmp_path, EPOCHS, None, moment))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL

    found = last_checkpoint(tmp_path)
    assert (found.path.name, found.epochs) == (name, epochs)
    process = CONTEXT.Process(target=train, args=(tmp_path, EPOCHS, found.path))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0
    assert_same(read_last(tmp_path)['state_dict'], read_last(uninterrupted)['state_dict'])


@pytest.fixture
def run(uninterrupted, tmp_path):
    """Folder with copies: the last checkpoint, of 12 epochs, and the one before."""
    for name in ('last', 'checkpoint-10'):
        shutil.copy(uninterrupted / f'{name}.pth.tar', tmp_path)
    return tmp_path


def cut(path):
    os.truncate(path, path.stat().st_size * 2 // 3)


def cut_by_a_byte(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    path.write_bytes(b'')


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_weight(path):
    """One bit of the largest tensor; PyTorch loads this without a word."""
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda i: i.file_size)
    content = bytearray(path.read_bytes())
    content[info.header_offset + 200 + info.file_size // 2] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize('damage', [cut, cut_by_a_byte, empty, fill_with_zeros, flip_a_weight])
def test_damaged_checkpoint_is_refused_and_the_last_good_one_named(run, damage):
    last = run / 'last.pth.tar'
    damage(last)
    if damage is flip_a_weight:
        assert torch.load(last, weights_only=False)['epoch'] == EPOCHS - 1
    (run / 'new').mkdir()
    task, optimizer = train(run / 'new', 1)
    before = {key: value.clone() for key, value in task.trainable_module.state_dict().items()}
    for load in (resume_task_checkpoint, load_task_ema_checkpoint):
        with pytest.raises(CheckpointError) as caught:
            load(task, str(last))
        assert str(caught.value).startswith(f'{last} is damaged (')
        assert f'the last good one is {run / "checkpoint-10.pth.tar"}, after 11 epochs' in str(caught.value)
    assert_same(dict(task.trainable_module.state_dict()), before)
    assert resume_task_checkpoint(task, str(run / 'checkpoint-10.pth.tar'), optimizer, log_info=False) == 11


def test_nothing_good_is_left(run):
    for path in run.glob('*.pth.tar'):
        cut(path)
    assert last_checkpoint(run) is None
    with pytest.raises(CheckpointError, match=f'there is no good one in {run}'):
        check_checkpoint(run / 'last.pth.tar')


def test_good_files_pass(run, tmp_path):
    check_checkpoint(run / 'last.pth.tar')
    torch.save({'weight': torch.ones(3)}, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    check_checkpoint(tmp_path / 'old.pth')
    with pytest.raises(FileNotFoundError):
        check_checkpoint(tmp_path / 'none.pth.tar')


def test_file_without_checksums_passes(run):
    content = torch.load(run / 'last.pth.tar', weights_only=False)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(content, run / 'last.pth.tar')
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(run / 'last.pth.tar') as archive:
        assert archive.testzip() is not None  # so it is what zipfile takes for damaged
    assert last_checkpoint(run).path.name == 'last.pth.tar'
    (run / 'new').mkdir()
    task, _ = train(run / 'new', 1)
    assert resume_task_checkpoint(task, str(run / 'last.pth.tar'), log_info=False) == EPOCHS
    cut(run / 'last.pth.tar')  # which is told all the same
    with pytest.raises(CheckpointError, match='its end is missing'):
        resume_task_checkpoint(task, str(run / 'last.pth.tar'))


def resume_others(path, answers):
    """What happens to a damaged checkpoint in a process that trains a plain model, and then a DRNet."""
    for model in (timm.create_model('test_resnet', num_classes=5), make_model()):
        task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
        try:
            resume_task_checkpoint(task, path, log_info=False)
            answers.put('resumed')
        except Exception as error:
            answers.put(type(error).__name__)


def test_other_models_are_resumed_as_without_this_package(tmp_path):
    plain = timm.create_model('test_resnet', num_classes=5)
    torch.save({'state_dict': plain.state_dict(), 'epoch': 0}, tmp_path / 'last.pth.tar')
    flip_a_weight(tmp_path / 'last.pth.tar')
    answers = CONTEXT.SimpleQueue()
    process = CONTEXT.Process(target=resume_others, args=(str(tmp_path / 'last.pth.tar'), answers))
    process.start()
    assert [answers.get(), answers.get()] == ['resumed', 'CheckpointError']
    process.join(timeout=60)


def test_recovery_checkpoint_is_no_end_of_an_epoch(run):
    (run / 'last.pth.tar').rename(run / 'recovery-11-5.pth.tar')
    assert last_checkpoint(run).path.name == 'checkpoint-10.pth.tar'


def test_command_prints_the_path(run, capsys):
    assert main(['last-checkpoint', str(run)]) == 0
    assert capsys.readouterr().out == f'{run / "last.pth.tar"}\n'
    flip_a_weight(run / 'last.pth.tar')
    assert main(['last-checkpoint', str(run)]) == 0
    assert capsys.readouterr().out == f'{run / "checkpoint-10.pth.tar"}\n'


@pytest.mark.parametrize(('folder', 'message'), [
    ('none', 'none: no such folder'), ('.', 'no whole checkpoint (*.pth.tar) in it; start the training without'),
])
def test_command_without_a_checkpoint(folder, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(['last-checkpoint', folder]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == err  # train.py --resume "$(...)" gets the path of a file that is not there, and says so
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    assert main(['last-checkpoint', folder]) == 2
    assert capsys.readouterr() == ('', err)


def test_commands_refuse_a_damaged_checkpoint(run, capsys):
    cut(run / 'last.pth.tar')
    assert main(['validate', 'drnet_resnet50', '.', '--checkpoint', str(run / 'last.pth.tar')]) == 2
    assert f'--checkpoint {run / "last.pth.tar"} is damaged' in capsys.readouterr().err
