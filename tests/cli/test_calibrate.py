"""``timm-drnet calibrate``: from a plain checkpoint to a DRNet on disk."""

import re

import pytest
import timm
import torch
from PIL import Image

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.data.reading import image_loader

TINY = ('--num-classes', '3', '--model-kwargs', 'backbone=test_resnet', 'resolutions=(64,48,32)',
        'predictor=inverted_residual', 'predictor_size=32')


@pytest.fixture
def data(tmp_path):
    """Noise in three classes, eight images each, each class of a brightness of its own."""
    for label in range(3):
        folder = tmp_path / 'data' / 'train' / f'class{label}'
        folder.mkdir(parents=True)
        for i in range(8):
            noise = torch.randint(0, 100, (64, 64, 3), generator=torch.Generator().manual_seed(10 * label + i))
            Image.fromarray((noise + 70 * label).byte().numpy()).save(folder / f'{i}.png')
    return tmp_path / 'data'


@pytest.fixture
def plain(tmp_path, shake):
    """A checkpoint of a plain backbone, as train.py writes it."""
    torch.manual_seed(1)
    model = shake(timm.create_model('test_resnet', num_classes=3))
    torch.save({'state_dict': model.state_dict(), 'arch': 'test_resnet'}, tmp_path / 'plain.pth.tar')
    return model, tmp_path / 'plain.pth.tar'


@pytest.fixture
def run(capsys):
    """Run the command: exit code, stdout, stderr."""

    def run(*args):
        code = main(['calibrate', 'drnet', *map(str, args), *TINY])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def all_images(model, data):
    load = image_loader(model)
    return torch.stack([load(path) for path in sorted(data.rglob('*.png'))])


def test_plain_checkpoint_becomes_a_drnet(run, data, plain, tmp_path):
    backbone, checkpoint = plain
    code, out, err = run(data, '--checkpoint', checkpoint, '--output', tmp_path / 'out', '-b', 24)
    assert code == 0, err
    assert 'norms: statistics at 64, 48, 32 px estimated on 24 images' in out
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    assert model.resolutions == (64, 48, 32)
    x = all_images(model, data)
    assert len(x) == 24
    for j, size in enumerate(model.resolutions):  # in one batch of all images, the order does not matter
        small = torch.nn.functional.interpolate(x, size, mode='bilinear', align_corners=False) if size < 64 else x
        torch.optim.swa_utils.update_bn([small], backbone)
        torch.testing.assert_close(model.forward_at(x, j), backbone.eval()(small), rtol=1e-3, atol=1e-4)


def test_statistics_that_are_kept(run, data, plain, tmp_path):
    backbone, checkpoint = plain
    code, out, _ = run(data, '--checkpoint', checkpoint, '--output', tmp_path / 'out', '--keep', 64, '-b', 8)
    assert code == 0
    assert 'statistics at 48, 32 px' in out
    model = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
    x = all_images(model, data)
    torch.testing.assert_close(model.forward_at(x, 0), backbone.eval()(x), rtol=1e-4, atol=1e-5)


def test_images_are_drawn_at_random(run, data, plain, tmp_path, monkeypatch):
    """Sorted by class, batches of eight would hold one class each."""
    seen = []
    original = timm_drnet.train.norm_statistics.calibrate_norms

    def watch(model, batches, keep):
        batches = list(batches)
        seen.extend(x.mean(dim=(1, 2, 3)) for x in batches)
        return original(model, batches, keep)

    monkeypatch.setattr('timm_drnet.cli.calibrate.calibrate_norms', watch)
    assert run(data, '--checkpoint', plain[1], '--output', tmp_path / 'out', '-b', 8)[0] == 0
    assert all(len({round(float(m) / 0.27 / 4) for m in means}) > 1 for means in seen)


def test_predictor_is_trained_and_backbone_is_not(run, data, plain, tmp_path):
    code, out, err = run(
        data, '--checkpoint', plain[1], '--output', tmp_path / 'out', '--train-predictor', 2, '-b', 8, '-j', 0)
    assert code == 0, err
    assert re.search(r'predictor: epoch 2 of 2, loss \d\.\d+, 64 px [\d.]+%, 48 px', out)
    run(data, '--checkpoint', plain[1], '--output', tmp_path / 'without', '-b', 8)
    trained, without = (
        timm.create_model(f'local-dir:{tmp_path / name}', pretrained=True).state_dict() for name in ('out', 'without'))
    changed = {k.partition('.')[0] for k in trained if not torch.equal(trained[k], without[k])}
    assert changed == {'predictor'}


def test_unreadable_images_are_named(run, data, plain, tmp_path):
    (data / 'train' / 'class0' / 'broken.png').write_bytes(b'no image')
    code, out, err = run(data, '--checkpoint', plain[1], '--output', tmp_path / 'out', '-b', 8)
    assert code == 1
    assert 'estimated on 24 images' in out
    assert 'broken.png' in err
    assert (tmp_path / 'out' / 'model.safetensors').exists()


@pytest.mark.parametrize(('args', 'told'), [
    (('--keep', 100), '--keep 100: the resolutions are 64, 48, 32'),
    (('--keep', 64, 48, 32), '--keep 64 48 32: this leaves nothing to do'),
    (('--train-predictor', 1, '-b', 100), '--batch-size 100: there are 24 images to train on'),
])
def test_bad_arguments(run, data, plain, tmp_path, args, told):
    code, out, err = run(data, '--checkpoint', plain[1], '--output', tmp_path / 'out', *args)
    assert (code, out) == (2, '')
    assert err.startswith(f'timm-drnet calibrate: {told}'), err
    assert not (tmp_path / 'out').exists()


def test_wrong_number_of_classes(run, data, plain, tmp_path):
    (data / 'train' / 'class3').mkdir()
    Image.new('RGB', (64, 64)).save(data / 'train' / 'class3' / 'x.png')
    code, _, err = run(data, '--checkpoint', plain[1], '--output', tmp_path / 'out', '--train-predictor', 1)
    assert code == 2
    assert '--train-predictor 1: ' in err
    assert 'of 4 classes' in err


def test_statistics_that_are_no_numbers_are_not_saved(run, data, plain, tmp_path):
    model, checkpoint = plain
    with torch.no_grad():
        model.conv1[0].weight.fill_(1e30)  # so the variance is infinite
    torch.save(model.state_dict(), checkpoint)
    code, _, err = run(data, '--checkpoint', checkpoint, '--output', tmp_path / 'out', '-b', 8)
    assert code == 2
    assert 'out: not written, the weights are damaged: backbone.conv1.1.norms.0.running_var has' in err
    assert not (tmp_path / 'out').exists()
