"""``timm-drnet budget``: a predictor and a cascade, several targets, with labels and without."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.data.reading import image_loader
from timm_drnet.hub.publishing import save_folder

PHOTOS = Path(__file__).parents[2] / 'examples' / 'photos'


@pytest.fixture(scope='module')
def model_name(tmp_path_factory, spread_answers):
    """A small DRNet that chooses different resolutions for the example photographs."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), predictor='inverted_residual', predictor_size=32, num_classes=5).eval()
    model.pretrained_cfg.update(input_size=(3, 64, 64), crop_pct=1.0)
    load = image_loader(model)
    spread_answers(model, torch.stack([load(path) for path in sorted(PHOTOS.glob('*.jpg'))]))
    folder = tmp_path_factory.mktemp('model')
    save_folder(model, folder)
    return f'local-dir:{folder}'


@pytest.fixture
def run(capsys, model_name):
    """Run the command: exit code, stdout, stderr."""

    def run(*args, model=model_name):
        code = main(['budget', model, *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """The example photographs, turned and mirrored: 96 images."""
    folder = tmp_path_factory.mktemp('photos')
    for path in sorted(PHOTOS.glob('*.jpg')):
        image = Image.open(path).convert('RGB')
        for i in range(8):
            side = min(image.size)
            part = image.crop((i * 4, i * 2, side - i, side - 2 * i))
            part.transpose(Image.Transpose.FLIP_LEFT_RIGHT if i % 2 else Image.Transpose.ROTATE_180).save(
                folder / f'{path.stem}{i}.png')
    return folder


def full_cost(name):
    """GFLOPs of a model whose every image runs at the largest resolution."""
    return timm_drnet.cost_table(timm.create_model(name, pretrained=True))[0].total_flops / 1e9


def spent(model, folder):
    """Average GFLOPs of a model on images."""
    rows = timm_drnet.cost_table(model)
    load = image_loader(model)
    paths = sorted(path for path in folder.iterdir() if path.suffix in ('.png', '.jpg'))
    with torch.inference_mode():
        choices = model.predict_resolution(torch.stack([load(path) for path in paths])).tolist()
    return sum(rows[j].total_flops for j in choices) / len(choices) / 1e9


@pytest.mark.parametrize('part', [0.5, 0.7, 0.9])
def test_target_is_met_by_the_saved_model(run, photos, tmp_path, model_name, part):
    target = round(part * full_cost(model_name), 4)
    code, out, err = run(photos, '--target-gflops', target, '--output', tmp_path / 'saved')
    assert code == 0, err
    assert f'for {target:g} GFLOPs' in out
    model = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
    assert model.args.cost_weight != 0
    assert spent(model, photos) == pytest.approx(target, rel=0.01)
    assert re.search('no accuracy: .*outside a class folder', out)


@pytest.mark.parametrize('labelled', [False, True])
def test_crop(run, photos, tmp_path, labelled, model_name):
    model = timm.create_model(model_name, pretrained=True).eval()
    data = photos
    if labelled:
        data = tmp_path / 'data'
        for i in range(model.num_classes):
            (data / 'validation' / f'class{i:03}').mkdir(parents=True)
            part = sorted(photos.glob('*.png'))[i % 64]
            (data / 'validation' / f'class{i:03}' / 'a.png').write_bytes(part.read_bytes())
    code, out, err = run(data, '--crop-pct', 0.4, '--json', '-j', 0)
    assert code == 0, err
    side = model.resolutions[0]
    transform = create_transform(**{**timm.data.resolve_data_config({}, model=model), 'crop_pct': 0.4})
    x = torch.stack([transform(Image.open(path).convert('RGB')) for path in sorted(data.rglob('*.png'))])
    assert x.shape[2] == side
    assert (json.loads(out)['curve'][0]['top1'] is not None) == labelled
    shares = [row['shares'] for row in json.loads(out)['curve'] if row['cost_weight'] == 0]
    choices = torch.cat([model.predict_resolution(part) for part in x.split(16)])
    assert shares == [pytest.approx([float((choices == j).float().mean()) for j in range(len(model.resolutions))])]


def test_printed_model_meets_the_target(run, photos, model_name):
    target = round(0.7 * full_cost(model_name), 4)
    code, out, _ = run(photos, '--target-gflops', target)
    assert code == 0
    weight = float(re.search(r"^timm.create_model\('local-dir.*', pretrained=True, cost_weight=(\S+)\)$", out, re.M)[1])
    model = timm.create_model(model_name, pretrained=True, cost_weight=weight).eval()
    assert spent(model, photos) == pytest.approx(target, rel=0.01)


def test_curve_as_json_with_labels(run, tmp_path, photos, model_name):
    for i, path in enumerate(sorted(photos.glob('*.png'))):
        folder = tmp_path / 'data' / 'abcde'[i % 5]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    code, out, err = run(tmp_path / 'data', '--json', '--points', 4, '-j', 0)
    assert code == 0, err
    report = json.loads(out)
    assert (report['unit'], report['images'], report['target'], report['chosen']) == ('GFLOPs', 96, None, None)
    rows = timm_drnet.cost_table(timm.create_model(model_name))
    assert len(report['curve']) == 5
    for one in report['curve']:
        assert one['cost'] == pytest.approx(
            sum(s * row.total_flops for s, row in zip(one['shares'], rows, strict=True)) / 1e9)
        assert 0 <= one['top1'] <= 100
    assert 0 in [one['cost_weight'] for one in report['curve']]


def test_milliseconds(run, photos, monkeypatch, tmp_path):
    monkeypatch.setattr('timm_drnet.cli.budget.latency_table', lambda model, batch_size: [
        timm_drnet.LatencyRow(r, ms, batch_size / 8, ms + batch_size / 8, ms / 20)
        for r, ms in ((64, 20.0), (48, 16.0), (32, 10.0))])
    code, out, err = run(photos, '--target-ms', 15.5, '--output', tmp_path / 'saved')
    assert code == 0, err
    assert 'for 15.5 ms' in out
    model = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
    assert tuple(model.args.cost) == (20, 16, 10, 1)
    load = image_loader(model)
    with torch.inference_mode():
        choices = model.predict_resolution(torch.stack([load(path) for path in photos.glob('*.png')])).tolist()
    assert sum((20, 16, 10)[j] + 1 for j in choices) / len(choices) == pytest.approx(15.5, rel=0.01)


def test_unreadable_images_are_named(run, photos, tmp_path):
    shutil.copytree(photos, tmp_path / 'some')
    (tmp_path / 'some' / 'broken.png').write_bytes(b'no image')
    code, out, err = run(tmp_path / 'some')
    assert code == 1
    assert 'on 96 images' in out
    assert 'skipped' in err
    assert 'broken.png' in err


@pytest.mark.parametrize(('args', 'told'), [
    (('--target-gflops', 9), '--target-gflops 9: .*Invalid target 9 GFLOPs: on these 12 images'),
    (('--output', 'somewhere'), '--output somewhere: without a target'),
])
def test_bad_arguments(run, args, told):
    code, out, err = run(PHOTOS, *args)
    assert (code, out) == (2, '')
    assert re.fullmatch(f'timm-drnet budget: {told}.*\n', err), err


def test_no_such_folder(run):
    code, _, err = run('nowhere')
    assert code == 2
    assert err == 'timm-drnet budget: nowhere: no such folder\n'


def test_cascade(run, tmp_path):
    torch.manual_seed(0)
    kwargs = {'backbone': 'test_resnet', 'resolutions': (64, 48, 32), 'router': 'cascade'}
    model = timm.create_model('drnet', num_classes=5, **kwargs)
    torch.nn.init.normal_(model.get_classifier().weight)  # so that confidences differ
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'last.pth.tar')
    target = 0.9 * timm_drnet.cost_table(model)[0].backbone_flops / 1e9
    code, out, err = run(
        PHOTOS, '--checkpoint', tmp_path / 'last.pth.tar', '--target-gflops', target, '--output', tmp_path / 'saved',
        '--model-kwargs', *(f'{key}={value}'.replace(' ', '') for key, value in kwargs.items()), model='drnet')
    assert code == 0, err
    lines = out.splitlines()
    assert lines[1].split()[:2] == ['thresholds', 'GFLOPs']
    assert lines[1].endswith('agreement')
    assert 'as trained' not in out
    saved = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
    assert spent(saved, PHOTOS) == pytest.approx(target, rel=0.01)
    shown = lines[lines.index(next(line for line in lines if line.startswith('for '))) + 1]
    assert shown.startswith(', '.join('-' if t is None else f'{t:.4f}' for t in saved.args.thresholds) + '  ')
