"""``timm-drnet analyze`` from its arguments to its folder and exit code."""

import argparse
import csv
import json
import re

import pytest
import timm
import torch
from pictures import noise, save_noise
from timm.data import create_transform
from timm.models import save_for_hf

import timm_drnet
from cli.refusals import refused
from timm_drnet.cli import analyze, main

KWARGS = {
    'backbone': 'test_resnet', 'resolutions': (64, 48, 32), 'predictor': 'inverted_residual', 'predictor_size': 32}
MODEL = [f'{key}={value}'.replace(' ', '') for key, value in KWARGS.items()]
CLASSES, IMAGES = 3, 10


def prepare(i):
    """As the configuration of timm's test_resnet says."""
    half = (0.5, 0.5, 0.5)
    return create_transform(64, interpolation='bilinear', crop_pct=0.95, mean=half, std=half)(noise(i, IMAGES))


@pytest.fixture
def data(tmp_path):
    """Ten images in three classes, the label of image i is i % 3."""
    save_noise(tmp_path / 'data/val', IMAGES)
    return tmp_path / 'data'


@pytest.fixture(scope='module')
def model(spread_answers):
    """A model that gives different images different resolutions and classes."""
    torch.manual_seed(2)
    model = timm.create_model('drnet', num_classes=CLASSES, **KWARGS).eval()
    x = torch.stack([prepare(i) for i in range(IMAGES)])
    return spread_answers(model, x)


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / 'last.pth.tar'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'out'


@pytest.fixture
def run(data, checkpoint, out, capsys):
    """Run the command: exit code, stdout, stderr."""

    def run(*args, folder=data, weights=checkpoint, classes=CLASSES, model='drnet', kwargs=MODEL, command='analyze'):
        code = main([
            command, model, str(folder), *([str(out)] if command == 'analyze' else []), '-j', '0', '-b', '4',
            '--num-classes', str(classes), *([] if weights is None else ['--checkpoint', str(weights)]),
            *map(str, args), *(['--model-kwargs', *kwargs] if kwargs else [])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refused_and_nothing_written(result, match, out):
    refused(result, match)
    assert not out.exists()


def test_folder_holds_what_one_image_at_a_time_gives(run, model, out):
    code, stdout, err = run('--json')
    assert (code, err) == (0, '')
    summary = json.loads(stdout)
    assert summary == json.loads((out / 'summary.json').read_text())
    table = timm_drnet.cost_table(model)
    with (out / 'images.csv').open(newline='') as file:
        rows = {row['name']: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(f'{"abc"[i % 3]}/{i}.png' for i in range(IMAGES))
    any_right, spent, small, large = 0, 0, 0, 0
    for i in range(IMAGES):
        x = prepare(i)[None]
        with torch.no_grad():
            answers = [model.forward_at(x, j).argmax().item() for j in range(3)]
            choice = int(model.predict_resolution(x))
        right = [answer == i % 3 for answer in answers]
        row = rows[f'{"abc"[i % 3]}/{i}.png']
        assert [row[f'prediction_{side}'] for side in (64, 48, 32)] == [str(answer) for answer in answers]
        assert (row['label'], row['label_name']) == (str(i % 3), 'abc'[i % 3])  # the model just counts its classes
        assert row['choice'] == str((64, 48, 32)[choice])
        needed = [j for j in (2, 1, 0) if right[j]]
        assert row['oracle'] == (str((64, 48, 32)[needed[0]]) if needed else 'none')
        any_right += bool(needed)
        spent += table[needed[0] if needed else 2].backbone_flops
        small += not right[choice] and any(right[:choice])
        large += right[choice] and any(right[choice + 1:])
    assert summary['oracle']['top1'] == pytest.approx(100 * any_right / IMAGES)
    assert summary['oracle']['gflops'] == pytest.approx(spent / IMAGES / 1e9)
    assert summary['choices']['outcomes']['too_small'] == small
    assert summary['choices']['outcomes']['needlessly_large'] == large
    assert 0 < any_right < IMAGES
    assert len({row['choice'] for row in rows.values()}) > 1
    assert (summary['img_size'], summary['crop_pct'], summary['seed']) == (64, 0.95, 42)


def test_numbers_are_those_of_validate(run):
    mine = json.loads(run('--json', '--limit', 9)[1])
    theirs = json.loads(run('--json', '--limit', 9, command='validate')[1])
    assert {key: mine[key] for key in theirs} == theirs
    assert mine['images'] == 9


def test_table_shows_the_same_numbers(run, out):
    code, stdout, err = run()
    assert (code, err) == (0, '')
    summary = json.loads((out / 'summary.json').read_text())
    lines = stdout.splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0] == 'drnet: 10 images, 3 classes'
    shown = {re.split('  +', line)[0]: re.findall(r'\d+\.\d+', line) for line in lines[2:-1]}
    assert ' '.join(summary['verdict']['sentence'].split()) in ' '.join(stdout.split())
    assert ' '.join(stdout.split()).count('no better than lots') == 1

    def score(values, suffix=''):
        return [f'{values["top1"]:.2f}', f'{values["gflops" + suffix]:.4f}', f'{100 * values["fraction" + suffix]:.1f}']

    assert shown['dynamic'] == score(summary['dynamic'])
    assert shown['held at 64 px'] == score(summary['resolutions'][0]['held'])
    assert shown['static line at the same cost'] == [
        f'{summary["verdict"]["static"]["top1"]:.2f}', *score(summary['dynamic'])[1:]]
    assert shown['lots at the same shares'] == score(summary['random']['mean'])
    assert shown['oracle'] == score(summary['oracle'])
    assert shown['oracle, with the router'] == score(summary['oracle'], '_with_router')
    assert shown['too small'] == [f'{10 * summary["choices"]["outcomes"]["too_small"]:.2f}']
    assert shown['needlessly large'] == [f'{10 * summary["choices"]["outcomes"]["needlessly_large"]:.2f}']
    assert shown['right at no resolution'] == [f'{10 * summary["oracle"]["none_right"]:.2f}']
    assert shown['agreement with the oracle'] == [
        f'{100 * summary["choices"][key]:.2f}' for key in ('agreement', 'agreement_by_chance')]
    assert shown['calibration error'] == [f'{100 * summary["calibration"]["ece"]:.2f}']
    assert lines[-1] == f'look at it: {out / "index.html"}'


def test_options_reach_the_measurement(run, monkeypatch, out):
    seen = []
    original = analyze.analyze

    def spy(model, batches, amp, seed):
        seen.append((amp, seed))
        return original(model, batches, amp, seed)

    monkeypatch.setattr(analyze, 'analyze', spy)
    code, stdout, _ = run('--amp', '--seed', 5, '--limit', 5, '--crop-pct', 0.5, '--json')
    summary = json.loads(stdout)
    assert (code, seen) == (0, [(True, 5)])
    assert (summary['images'], summary['crop_pct'], summary['amp'], summary['limit']) == (5, 0.5, True, 5)
    page = (out / 'index.html').read_text()
    assert '<dt>crop pct</dt><dd>0.5</dd>' in page
    assert 'drnet on data/val' in page


def test_pretrain_stage_is_refused(run, model, checkpoint, out):
    torch.save({'state_dict': model.state_dict(), 'args': argparse.Namespace(model_kwargs={'stage': 'pretrain'})},
               checkpoint)
    refused_and_nothing_written(run(), r'pretrain stage, in which the predictor is not in use.*joint', out)


def test_unreadable_images(run, data, out):
    (data / 'val/a/3.png').write_text('no image')
    code, stdout, err = run('--json')
    assert code == 1
    assert [file['path'] for file in json.loads(stdout)['unreadable']] == ['a/3.png']
    assert 'skipped a/3.png: not an image' in err
    assert '1 of 10 images are unreadable and were not analyzed' in err
    assert '1 image could not be read' in (out / 'index.html').read_text()


def test_many_unreadable_images(run, data):
    for i in range(12):
        (data / f'val/b/x{i}.png').write_text('no image')
    code, _, err = run()
    assert code == 1
    assert err.count('skipped') == 10
    assert '... and 2 more' in err
    assert '12 of 22 images' in err


def test_bad_data(run, data, out):
    refused_and_nothing_written(run(folder=data / 'nowhere'), 'nowhere: no such folder', out)
    refused_and_nothing_written(run(folder=data / 'val/a'), 'a: images such as 0.png lie outside a class folder', out)
    for path in data.glob('val/*/*'):
        path.write_text('no image')
    refused_and_nothing_written(run(), 'none of 10 images is readable', out)


def test_dataset_of_torchvision(run, out):
    code, _, err = run('--dataset', 'torch/image_folder', '--split', 'val')
    assert (code, err) == (0, '')
    page = (out / 'index.html').read_text()
    assert 'drnet on torch/image_folder, val' in page
    assert page.count('<img src="data:image/jpeg;base64,') == IMAGES
    assert '<b>a</b>' in page


def test_class_map(run, data, tmp_path, out):
    (tmp_path / 'classes.txt').write_text('c\nb\na\n')
    assert run('--class-map', tmp_path / 'classes.txt')[0] == 0
    with (out / 'images.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert {(row['name'][0], row['label'], row['label_name']) for row in rows} == {
        ('a', '2', 'a'), ('b', '1', 'b'), ('c', '0', 'c')}


def test_names_of_the_model_come_first(run, model, tmp_path, out):
    labels = {'label_names': ['ape', 'bee', 'cow']}
    save_for_hf(model, str(tmp_path / 'hub'), labels, model_args=KWARGS, safe_serialization=True)
    assert run(model=f'local-dir:{tmp_path / "hub"}', weights=None, kwargs=[])[0] == 0
    assert '<b>ape</b>' in (out / 'index.html').read_text()
    out.rename(tmp_path / 'done')
    refused_and_nothing_written(
        run(model=f'local-dir:{tmp_path / "hub"}', weights=None, kwargs=[], classes=4),
        'weights of .* are for 3 classes', out)


def test_bad_model(run, tmp_path, out):
    refused_and_nothing_written(run(weights=tmp_path / 'nowhere.pth'), 'nowhere.pth: no such file', out)
    refused_and_nothing_written(run(classes=4), 'the weights are for 3 classes, not 4', out)
    refused_and_nothing_written(run('--device', 'nothing'), '--device nothing: ', out)


def test_folder_is_checked_before_the_model_is_loaded(run, out, monkeypatch, capsys):
    monkeypatch.setattr(analyze, 'load_model', lambda *args, **kwargs: pytest.fail('loaded'))
    out.mkdir()
    (out / 'mine.txt').write_text('precious')
    code, stdout, err = run()
    assert (code, stdout) == (2, '')
    assert 'this folder is not empty' in err
    assert [path.name for path in out.iterdir()] == ['mine.txt']


def test_empty_folder_is_taken(run, out):
    out.mkdir()
    assert run()[0] == 0
    assert (out / 'index.html').is_file()


def test_interrupted(run, out, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(analyze, 'analyze', interrupt)
    assert run()[:2] == (130, '')
    assert not out.exists()
