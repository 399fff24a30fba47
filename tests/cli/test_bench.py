"""``timm-drnet bench``: what it measures with which arguments, and what it refuses."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.data.reading import image_loader
from timm_drnet.hub.publishing import save_folder

PHOTOS = Path(__file__).parents[2] / 'examples' / 'photos'
TINY = ('--model-kwargs', 'backbone=test_resnet', 'resolutions=(64,48,32)', 'predictor=inverted_residual')


@pytest.fixture
def run(capsys):
    """Run the command: exit code, stdout, stderr."""

    def run(*args, model='drnet', kwargs=TINY):
        code = main(['bench', model, '--repeats', '2', *map(str, args), *kwargs])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_mix(run, tmp_path):
    code, out, _ = run(
        '--mix', '0.25,0.25,0.5', '-b', 1, 8, '--engine', 'eager', 'deployed', '--threads', 1,
        '--output', tmp_path / 'bench.json')
    assert code == 0
    report = json.loads((tmp_path / 'bench.json').read_text())
    assert (report['model'], report['mix'], report['dtype']) == ('drnet', [0.25, 0.25, 0.5], 'float32')
    assert report['machine']['threads'] == 1
    assert list(report['engines']) == ['eager', 'deployed']
    rows = timm_drnet.cost_table(timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), predictor='inverted_residual'))
    average = sum(share * row.total_flops for share, row in zip((0.25, 0.25, 0.5), rows, strict=True))
    for engine in report['engines'].values():
        assert [one['batch_size'] for one in engine] == [1, 8]
        for one in engine:
            assert one['shares'] == [0.25, 0.25, 0.5]
            dynamic, largest, *_ = one['timings']
            assert dynamic['flops_ratio'] == pytest.approx(average / rows[0].backbone_flops)
            assert largest['time_ratio'] == 1
        assert [one['speedup'] > 0 for one in engine] == [True, True]
    assert [one['speedup'] for one in report['engines']['eager']] == [1, 1]
    assert len(re.findall(r'times the throughput of eager$', out, re.MULTILINE)) == 2
    assert 'eager, batches of 8, shares of the resolutions 25 %, 25 %, 50 %' in out
    for name in ('dynamic', 'held at 64 px', 'held at 48 px', 'held at 32 px', 'all branches'):
        assert len(re.findall(f'^{name} .*\\d$', out, re.MULTILINE)) == 4


def test_cascade(run):
    cascade = (*TINY[:3], 'router=cascade', 'thresholds=(None,0.5)')
    code, out, _ = run('-b', 4, '--engine', 'eager', '--json', kwargs=cascade)
    assert code == 0
    [one] = json.loads(out)['engines']['eager']
    assert one['shares'] == [0.5, 0, 0.5]
    dynamic, _, _, smallest, _ = one['timings']
    assert dynamic['flops_ratio'] == pytest.approx(0.5 + smallest['flops_ratio'])
    code, _, err = run('--mix', '0.4,0.2,0.4', kwargs=cascade)
    assert code == 2
    assert '--mix 0.4,0.2,0.4: the cascade leaves 48 px out; give it 0' in err


@pytest.fixture
def cascade_folder(tmp_path):
    """A small cascade in a folder, which sends three of the twelve photographs on to the larger size."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet('test_resnet', resolutions=(64, 48), router='cascade', num_classes=5).eval()
    model.pretrained_cfg.update(input_size=(3, 64, 64), crop_pct=1.0)
    load = image_loader(model)
    x = torch.stack([load(path) for path in sorted(PHOTOS.glob('*.jpg'))])
    with torch.no_grad():
        model.get_classifier().weight.mul_(20)  # or all would be as unsure
        sure = model.forward_at(x, 1).softmax(dim=1).amax(dim=1).sort().values
    model.args = replace(model.args, thresholds=(float(sure[2:4].mean()),))
    save_folder(model, tmp_path / 'model')
    return tmp_path / 'model'


def test_photographs_at_the_resolutions_predicted_for_them(run, cascade_folder, monkeypatch):
    run_at = timm_drnet.DRNet._run

    def without_gradients(self, index, x):
        assert not torch.is_grad_enabled()
        return run_at(self, index, x)

    monkeypatch.setattr(timm_drnet.DRNet, '_run', without_gradients)
    code, out, err = run(
        '--data', PHOTOS, '-b', 4, '--engine', 'eager', '--json', model=f'local-dir:{cascade_folder}', kwargs=())
    assert code == 0, err
    report = json.loads(out)
    [one] = report['engines']['eager']
    assert report['mix'] is None
    assert one['shares'] == pytest.approx([3 / 12, 9 / 12])
    dynamic, _, smallest, _ = one['timings']
    assert dynamic['flops_ratio'] == pytest.approx(3 / 12 + smallest['flops_ratio'])  # all run there first


def test_plot(run, tmp_path):
    results = tmp_path / 'results.json'
    score = {'top1': 80.0, 'top5': 95.0, 'gflops': 0.1, 'fraction': 0.7}
    rows = timm_drnet.cost_table(timm_drnet.create_drnet('test_resnet', resolutions=(64, 48, 32)))
    results.write_text(json.dumps({
        'model': 'drnet', 'checkpoint': None, 'split': 'validation', 'limit': None, 'crop_pct': 1.0,
        'interpolation': 'bilinear', 'amp': False, 'unreadable': [], 'images': 10, 'stage': 'joint',
        'router': 'predictor', 'static_line': [], 'verdict': None, 'oracle': {
            'top1': 90.0, 'gflops': 0.1, 'fraction': 0.5, 'gflops_with_router': 0.1, 'fraction_with_router': 0.5,
            'images': [3, 3, 3], 'none_right': 1},
        'num_classes': 1000, 'k': 5, 'dynamic': score,
        'resolutions': [
            {'resolution': row.resolution, 'images': 3, 'share': 0.3, 'routed': score,
             'held': {**score, 'gflops': row.backbone_flops / 1e9}} for row in rows],
        'random': {'mean': score, 'std': {'top1': 0.1, 'top5': 0.1}}}))
    args = ('-b', 1, 2, '--engine', 'eager', '--results', results)
    assert run(*args, '--plot', tmp_path / 'speed.png')[0] == 0
    with Image.open(tmp_path / 'speed.png') as image:
        assert image.size[0] > 1000
        assert len(image.convert('RGB').getcolors(1 << 20)) > 10
    results.write_text('{}')
    code, _, err = run(*args, '--plot', tmp_path / 'other.png')
    assert code == 2
    assert 'not the JSON of timm-drnet validate' in err
    assert not (tmp_path / 'other.png').exists()


@pytest.mark.parametrize(('args', 'told'), [
    (('--mix', '0.5,0.5'), '--mix 0.5,0.5: give 3 shares that add up to 1'),
    (('--mix', '0.5,0.5,0.5'), 'add up to 1'),
    (('--mix', '1.5,-0.5,0'), 'add up to 1'),
    (('--mix', 'a,b,c'), '--mix a,b,c'),
    (('--data', PHOTOS, '--mix', '1,0,0'), '--mix 1,0,0: with --data the predictor decides'),
    (('--checkpoint', 'x.pth'), '--checkpoint x.pth: without --data no weights are needed'),
    (('--plot', 'x.png'), 'give both of them'),
    (('--results', 'x.json'), 'give both of them'),
    (('--plot', 'x.txt', '--results', 'x.json'), '--plot x.txt: use a name that ends in .png'),
    (('--engine', 'onnxruntime', '--dtype', 'bfloat16', '-b', 1), '--engine onnxruntime: .*takes float32 images'),
])
def test_bad_arguments(run, args, told):
    code, out, err = run(*args)
    assert (code, out) == (2, '')
    assert re.fullmatch(f'timm-drnet bench: .*{told}.*\n', err), err


def test_model_that_does_not_deploy(run, monkeypatch):
    def refuse(model):
        raise RuntimeError('ResNet cannot be deployed: the result differs. Use the model as it is.')

    monkeypatch.setattr('timm_drnet.evaluate.engines.deploy', refuse)
    code, out, err = run('--engine', 'deployed', '-b', 1)
    assert (code, out) == (2, '')
    assert err == (
        'timm-drnet bench: --engine deployed: ResNet cannot be deployed: the result differs. Use the model as it is.\n')


def test_too_few_photographs(run, tmp_path):
    Image.new('RGB', (80, 80)).save(tmp_path / 'one.png')
    (tmp_path / 'broken.jpg').write_bytes(b'no image')
    code, _, err = run('--data', tmp_path, '-b', 2, model=timm_drnet.DEFAULT_MODEL, kwargs=())
    assert code == 2
    assert 'skipped' in err
    assert '1 images do not fill a batch of 2; give more, or a smaller --batch-size' in err
