"""``timm-drnet validate`` from its arguments to its output and exit code."""

import argparse
import json
import re

import pytest
import timm
import torch
from pictures import noise, save_noise
from timm.data import create_transform

import timm_drnet
from cli.refusals import refused
from timm_drnet.cli import main, validate

KWARGS = {'backbone': 'resnet10t', 'resolutions': (64, 48, 32), 'predictor': 'inverted_residual'}
MODEL = ['--model-kwargs', 'backbone=resnet10t', 'resolutions=(64,48,32)', 'predictor=inverted_residual']
CLASSES = 3
IMAGES = 7


@pytest.fixture
def data(tmp_path):
    """Seven images in three classes; the label of image i is i % 3."""
    save_noise(tmp_path / 'data/val', IMAGES)
    return tmp_path / 'data'


@pytest.fixture(scope='module')
def model(spread_answers):
    """A model that gives different images different resolutions and classes."""
    torch.manual_seed(0)
    model = timm.create_model('drnet', num_classes=CLASSES, **KWARGS).eval()
    x = torch.stack([prepare(i) for i in range(IMAGES)])
    return spread_answers(model, x)


def prepare(i):
    return create_transform(64, interpolation='bicubic', crop_pct=0.875)(noise(i, IMAGES))


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / 'last.pth.tar'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture
def run(data, checkpoint, capsys):
    """Run the command: exit code, stdout, stderr."""

    def run(*args, folder=data, weights=checkpoint, classes=CLASSES, model='drnet', kwargs=MODEL):
        code = main(['validate', model, str(folder), '-j', '0', '-b', '4', '--num-classes', str(classes),
                     *([] if weights is None else ['--checkpoint', str(weights)]), *map(str, args), *kwargs])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_json_holds_what_one_image_at_a_time_gives(run, data, model, tmp_path):
    code, out, err = run('--json', '--output', tmp_path / 'result.json')
    assert (code, err) == (0, '')
    result = json.loads(out)
    assert (tmp_path / 'result.json').read_text() == out

    table = timm_drnet.cost_table(model)
    with torch.no_grad():
        choices = [int(model.predict_resolution(prepare(i)[None])) for i in range(IMAGES)]
        held = [[model.forward_at(prepare(i)[None], j).argmax().item() == i % 3 for i in range(IMAGES)]
                for j in range(3)]
    right = [held[choice][i] for i, choice in enumerate(choices)]
    assert 0 < sum(right) < IMAGES
    assert (result['images'], result['unreadable'], result['stage'], result['k']) == (IMAGES, [], 'joint', 3)
    assert result['dynamic']['top1'] == pytest.approx(100 * sum(right) / IMAGES)
    assert result['dynamic']['top5'] == 100
    assert result['dynamic']['gflops'] == pytest.approx(sum(table[j].total_flops for j in choices) / IMAGES / 1e9)
    assert [row['images'] for row in result['resolutions']] == [choices.count(j) for j in range(3)]
    for j, row in enumerate(result['resolutions']):
        assert row['resolution'] == (64, 48, 32)[j]
        assert row['held']['top1'] == pytest.approx(100 * sum(held[j]) / IMAGES)
        assert row['held']['gflops'] == pytest.approx(table[j].backbone_flops / 1e9)
    assert result['router'] == 'predictor'
    any_right = [any(held[j][i] for j in range(3)) for i in range(IMAGES)]
    assert result['oracle']['top1'] == pytest.approx(100 * sum(any_right) / IMAGES)
    assert result['verdict']['lots']['low'] <= result['verdict']['lots']['difference']
    assert (result['img_size'], result['crop_pct'], result['data']) == (64, 0.875, str(data))


def test_table_shows_the_same_numbers(run):
    result = json.loads(run('--json')[1])
    code, out, err = run()
    assert (code, err) == (0, '')
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == 'drnet on data/val: 7 images, 3 classes'
    assert lines[1].split() == ['top-1', 'top-3', 'GFLOPs', 'of', 'largest']

    def numbers(score):
        accuracies = [f'{score[key]:.2f}' for key in ('top1', 'top5')]
        return [*accuracies, f'{score["gflops"]:.4f}', f'{100 * score["fraction"]:.1f}']

    rows = result['resolutions']
    shown = [re.findall(r'\d+\.\d+', line) for line in lines[2:]]
    assert shown[0] == numbers(result['dynamic'])
    for line, row in zip(shown[1:4], rows, strict=True):
        assert line == [f'{100 * row["share"]:.1f}', *(numbers(row['routed']) if row['routed'] else [])]
    assert shown[4:7] == [numbers(row['held']) for row in rows]
    verdict, oracle = result['verdict'], result['oracle']
    assert shown[7] == [f'{verdict["static"]["top1"]:.2f}', *shown[0][2:]]
    mean, std = result['random']['mean'], result['random']['std']
    assert shown[8] == [f'{mean["top1"]:.2f}', f'{std["top1"]:.2f}', f'{mean["top5"]:.2f}', f'{std["top5"]:.2f}',
                        *numbers(mean)[2:]]
    assert shown[9] == [f'{oracle["top1"]:.2f}', f'{oracle["gflops_with_router"]:.4f}',
                        f'{100 * oracle["fraction_with_router"]:.1f}']
    assert ' '.join(' '.join(lines[12:]).split()) == ' '.join(
        [verdict['sentence'], *(f'warning: {warning}' for warning in verdict['warnings'])])
    assert verdict['warnings'], 'seven images show nothing'


def test_cascade(run, model, checkpoint):
    state = {key: value for key, value in model.state_dict().items() if not key.startswith('predictor.')}
    torch.save({'state_dict': state}, checkpoint)
    with torch.no_grad():
        small = torch.cat([model.forward_at(prepare(i)[None], 2) for i in range(IMAGES)])
    sure = small.softmax(dim=1).amax(dim=1).sort(descending=True).values
    stopped = 3
    kwargs = [*MODEL, 'router=cascade', f'thresholds=(None,{float(sure[stopped - 1:stopped + 1].mean())})']
    code, out, err = run('--json', kwargs=kwargs)
    assert (code, err) == (0, '')
    result = json.loads(out)
    large, _, least = (row['held']['gflops'] for row in result['resolutions'])
    assert [row['images'] for row in result['resolutions']] == [IMAGES - stopped, 0, stopped]
    assert result['router'] == 'cascade'
    assert result['dynamic']['gflops'] == pytest.approx(least + large * (IMAGES - stopped) / IMAGES)
    assert 'lots at the same shares' in run(kwargs=kwargs)[1]


def test_options_reach_the_measurement(run, monkeypatch):
    seen = []
    measure = validate.validate

    def spy(model, batches, amp, channels_last, seed):
        seen.append((amp, channels_last, seed, model.backbone.conv1[0].weight.is_contiguous()))
        return measure(model, batches, amp, channels_last, seed)

    monkeypatch.setattr(validate, 'validate', spy)
    code, out, _ = run('--amp', '--channels-last', '--seed', 5, '--limit', 5, '--crop-pct', 0.5, '--json')
    result = json.loads(out)
    assert (code, seen) == (0, [(True, True, 5, False)])
    assert (result['images'], result['crop_pct'], result['amp'], result['seed']) == (5, 0.5, True, 5)


def save_trained(model, path, **model_kwargs):
    torch.save({'state_dict': model.state_dict(), 'args': argparse.Namespace(model_kwargs=model_kwargs)}, path)
    return path


def test_checkpoint_of_the_pretrain_stage(run, model, checkpoint):
    save_trained(model, checkpoint, stage='pretrain', resolutions=(96, 64, 32))
    kwargs = [arg for arg in MODEL if not arg.startswith('resolutions')]
    code, out, err = run(kwargs=kwargs)
    assert (code, err) == (0, '')
    assert 'pretrain stage: the resolution predictor is not in use, every image runs at 96 px' in out
    assert 'held at 64 px' in out
    assert not {'lots', 'oracle', 'static'} & set(out.split())
    result = json.loads(run('--json', kwargs=kwargs)[1])
    assert [row['share'] for row in result['resolutions']] == [1, 0, 0]
    assert result['dynamic'] == result['resolutions'][0]['held']
    assert result['resolutions'][1]['routed'] is None
    result = json.loads(run('--json', kwargs=[*kwargs, 'stage=joint'])[1])
    assert (result['stage'], result['img_size']) == ('joint', 96)


def test_unreadable_images(run, data):
    (data / 'val/a/0.png').write_text('no image')
    code, out, err = run('--json')
    result = json.loads(out)
    assert code == 1
    assert result['images'] == IMAGES - 1
    assert [file['path'] for file in result['unreadable']] == ['a/0.png']
    assert 'skipped a/0.png: not an image' in err
    assert '1 of 7 images are unreadable' in err


def test_many_unreadable_images(run, data):
    for i in range(12):
        (data / f'val/b/x{i}.png').write_text('no image')
    code, out, err = run('--json')
    assert code == 1
    assert len(json.loads(out)['unreadable']) == 12
    assert err.count('skipped') == 10
    assert '... and 2 more' in err
    assert '12 of 19 images are unreadable' in err


def test_nothing_readable(run, data):
    for path in data.glob('val/*/*'):
        path.write_text('no image')
    refused(run(), 'none of 7 images is readable')


def test_bad_folder(run, data):
    refused(run(folder=data / 'nowhere'), 'nowhere: no such folder')
    refused(run(folder=data / 'val/a'), 'a: images such as 0.png lie outside a class folder')
    for path in (data / 'val/a').iterdir():
        path.unlink()
    refused(run(), 'of 2 classes, but the model has 3')
    for path in data.glob('val/*/*'):
        path.unlink()
    refused(run(), 'Found 0 images')


def test_class_map(run, data, tmp_path):
    for path in (data / 'val/a').iterdir():
        path.unlink()
    (tmp_path / 'classes.txt').write_text('a\nb\nc\n')
    code, out, _ = run('--class-map', tmp_path / 'classes.txt', '--json')
    assert (code, json.loads(out)['images']) == (0, 4)


def test_dataset_of_torchvision(run, data):
    code, out, _ = run('--dataset', 'torch/image_folder', '--split', 'val')
    assert code == 0
    assert out.startswith('drnet on torch/image_folder, val: 7 images')


@pytest.mark.parametrize(('option', 'value'), [
    ('--output', '/nowhere/result.json'), ('--output', '/'), ('--device', 'nothing'),
])
def test_bad_option(run, option, value):
    refused(run(option, value), f'{option} {value}: ')


def test_bad_model(run, tmp_path):
    refused(run(weights=tmp_path / 'nowhere.pth'), 'nowhere.pth: no such file')
    refused(run(classes=4), 'the weights are for 3 classes, not 4')
    refused(run(model='nothing', kwargs=[]), "cannot create model 'nothing'")
    refused(run(weights=None, kwargs=['--model-kwargs', 'backbone=mobilenetv2_035']), '--checkpoint')


def test_interrupted(run, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, 'validate', interrupt)
    code, out, _ = run()
    assert (code, out) == (130, '')
