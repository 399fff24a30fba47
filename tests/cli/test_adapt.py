"""``timm-drnet adapt``: from a plain backbone and photographs to a folder that timm loads."""

import json
import re
from argparse import Namespace

import pytest
import timm
import torch
from pictures import draw_blots
from safetensors.torch import save_file

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.data.reading import image_loader

KWARGS = ['--model-kwargs', "pretrained_cfg_overlay={'input_size':(3,64,64),'crop_pct':1.0}"]


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """130 photographs without labels, and a file that is none."""
    root = tmp_path_factory.mktemp('photographs')
    draw_blots(root, 130)
    (root / 'x\x1b.png').write_bytes(b'no image')
    return root


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A plain model of four classes, and a file with its weights."""
    torch.manual_seed(0)
    plain = timm.create_model('test_resnet', num_classes=4).eval()
    with torch.no_grad():
        plain.get_classifier().weight.mul_(20)
    path = tmp_path_factory.mktemp('weights') / 'plain.safetensors'
    save_file(plain.state_dict(), path)
    return plain, path


def run(*args):
    return main(['adapt', 'test_resnet', *map(str, args), '-j', '0', '--held-out', '.5', *KWARGS])


def test_adapt(photographs, weights, tmp_path, capsys):
    plain, path = weights
    names = tmp_path / 'names.txt'
    names.write_text('one\ntwo\nthree\nfour\n')
    out = tmp_path / 'out'
    args = photographs, '--output', out, '--checkpoint', path, '--resolutions', 64, 48, '--target', .8, '--epochs', 1,
    assert run(*args, '--labels', names) == 1  # as one file is no image
    printed, err = capsys.readouterr()
    assert r'skipped' in err
    assert r'x\x1b.png: not an image' in err
    assert '\x1b' not in printed + err
    assert 'test_resnet on 130 images' in printed
    assert f"timm.create_model('local-dir:{out}', pretrained=True)" in printed
    assert sorted(p.name for p in tmp_path.iterdir()) == ['names.txt', 'out']  # no progress is left
    model = timm.create_model(f'local-dir:{out}', pretrained=True).eval()
    assert model.args.router == 'cascade'
    assert model.pretrained_cfg['label_names'] == ['one', 'two', 'three', 'four']
    load = image_loader(model)
    x = torch.stack([load(path) for path in sorted(photographs.glob('0*.png'))])
    with torch.no_grad():
        assert torch.equal(model.forward_at(x, 0), plain(x))
        rows = timm_drnet.cost_table(model)
        spent = sum(rows[j].total_flops for j in model.predict_resolution(x).tolist()) / len(x)
    assert spent == pytest.approx(.8 * rows[0].backbone_flops, rel=0.2)  # of all the images it is 80 %


def test_json_and_a_checkpoint_of_train_py(photographs, weights, tmp_path, capsys):
    for name in 'abcd':
        (tmp_path / 'data/train' / name).mkdir(parents=True)
        (tmp_path / 'data/train' / name / 'one.jpg').touch()
    recorded = Namespace(model='test_resnet', data_dir=str(tmp_path / 'data'))
    torch.save({'state_dict': weights[0].state_dict(), 'args': recorded}, tmp_path / 'last.pth.tar')
    args = '--checkpoint', tmp_path / 'last.pth.tar', '--resolutions', 64, 48, '--target', .8, '--epochs', 0, '--json'
    assert run(photographs, '--output', tmp_path / 'out', *args) == 1
    found = json.loads(capsys.readouterr().out)
    assert found['resolutions'] == [64, 48]
    assert found['budget']['chosen']['cost'] == pytest.approx(found['budget']['target'], rel=0.01)
    assert [trial['resolution'] for trial in found['trials']] == [48]
    assert timm.create_model(f'local-dir:{tmp_path / "out"}').pretrained_cfg['label_names'] == ['a', 'b', 'c', 'd']
    assert found['verdict'] is None or {'sentence', 'static', 'lots', 'warnings'} <= found['verdict'].keys()


def test_a_failed_save_loses_nothing(photographs, weights, tmp_path, monkeypatch):
    """The folder cannot be written: the progress stays, and the same command is done at once."""
    args = [
        photographs, '--output', tmp_path / 'out', '--checkpoint', weights[1], '--resolutions', 64, 48, '--target', .8,
        '--epochs', 1]

    def fail(*args):
        raise OSError(28, 'No space left on device', str(tmp_path / 'out'))

    with monkeypatch.context() as patch:
        patch.setattr('timm_drnet.cli.common.save_folder', fail)
        assert run(*args) == 2
    assert [p.name for p in tmp_path.iterdir()] == ['out.progress']
    monkeypatch.setattr('timm_drnet.adaptation.branches.tune_norms', lambda *args: pytest.fail('tuned again'))
    assert run(*args) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize(('args', 'told'), [
    (['{data}', '--checkpoint', '{data}/000.png'], r'--checkpoint .*000\.png: not a checkpoint'),
    (['{data}', '--checkpoint', '{weights}', '--resolutions', '48', '64'], 'Invalid resolutions'),
    (['{data}/none', '--checkpoint', '{weights}'], 'none: no such file or folder'),
    (['{data}', '--checkpoint', '{weights}', '--limit', '20'], 'Too few images: 10 to set the dial .* epochs=0'),
    (['{data}', '--checkpoint', '{weights}', '--num-classes', '7'], 'fc.weight is .* the weights are those of another'),
    (['{data}', '--checkpoint', '{weights}', '--target', '.1'], 'Invalid target 0.1: the smallest resolution alone'),
    (['{data}', '--checkpoint', '{weights}', '--labels', '{data}/000.png'], '--labels .*000.png'),
])
def test_bad_input(args, told, photographs, weights, tmp_path, capsys):
    places = {'data': photographs, 'weights': weights[1]}
    assert run(*(arg.format(**places) for arg in args), '--output', tmp_path / 'out') == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert err.count('\n') == 1, err
    assert re.search(told, err), err
    assert list(tmp_path.iterdir()) == []
