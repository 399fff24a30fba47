"""Every command, and the runner beside an export, sees pictures as they are meant, and shows their names escaped."""

import json
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from timm_drnet.cli import main
from timm_drnet.data.reading import data_config, image_loader
from timm_drnet.deploy import onnx_runner
from timm_drnet.hub.publishing import save_folder

SIDE = 64
CLOSE = 4 / 255 / 0.22  # four steps of 256, normalized: JPEG loses a little


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A model that sends everything to the largest resolution, saved."""
    torch.manual_seed(0)
    model = timm.create_model(
        'drnet', backbone='test_resnet', resolutions=(SIDE, 32), predictor='inverted_residual', predictor_size=32,
        num_classes=4)
    torch.nn.init.zeros_(model.predictor.classifier.weight)
    model.predictor.classifier.bias.data = torch.tensor([9.0, 0])
    torch.nn.init.normal_(model.get_classifier().weight)
    folder = tmp_path_factory.mktemp('models') / 'model'
    save_folder(model, folder)
    return folder


@pytest.fixture(scope='module')
def model(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


@pytest.fixture(scope='module')
def pictures(tmp_path_factory, model):
    """A folder of four pictures, and each as the input of the model, made from what it shows and not from the file."""
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    scene = Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1))
    grey = scene.convert('L')
    half = Image.new('L', scene.size, 255)
    half.paste(0, (0, 0, 48, 64))
    over_white = Image.composite(scene, Image.new('RGB', scene.size, 'white'), half)
    transparent = scene.copy()
    transparent.putalpha(half)
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = {'quality': 100, 'subsampling': 0}
    stored = {
        'turned.jpg': (scene.transpose(Image.Transpose.ROTATE_90), scene, {**jpeg, 'exif': exif}),
        'grey16.png': (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), grey.convert('RGB'), {}),
        'alpha.png': (transparent, over_white, {}),
        'cmyk.jpg': (scene.convert('CMYK'), scene, jpeg),
    }
    transform = create_transform(**data_config(model))
    root = tmp_path_factory.mktemp('pictures')
    meant = {}
    for label, (name, (image, shown, options)) in enumerate(stored.items()):
        path = root / f'class{label}' / name
        path.parent.mkdir()
        image.save(path, **options)
        meant[path] = transform(shown)
    return root, meant


@pytest.fixture
def seen():
    """All images of the largest resolution that modules are given."""
    seen = []

    def record(module, args):
        if args and torch.is_tensor(args[0]) and args[0].shape[1:] == (3, SIDE, SIDE):
            seen.extend(args[0].detach().clone())

    handle = torch.nn.modules.module.register_module_forward_pre_hook(record)
    yield seen
    handle.remove()


def check(images, meant):
    """Each of those meant is there; the costs are measured on others."""
    assert {path for image in images for path, x in meant.items() if (image - x).abs().max() < CLOSE} == set(meant)


def arguments(command, folder, data, out):
    """A command line that reads images of a folder."""
    model = f'local-dir:{folder}'
    return {
        'predict': ['predict', data, '--model', model],
        'validate': ['validate', model, data, '-j', '0'],
        'analyze': ['analyze', model, data, out, '-j', '0'],
        'budget': ['budget', model, data, '-j', '0'],
        'classify': ['classify', model, '--input', data, '--output', out, '--workers', '1', '--shard-size', '20'],
    }[command]


@pytest.mark.parametrize('command', ['predict', 'validate', 'analyze', 'budget'])
def test_commands_see_what_is_meant(command, folder, pictures, seen, tmp_path):
    root, meant = pictures
    assert main(arguments(command, folder, str(root), str(tmp_path / 'out'))) == 0
    check(seen, meant)


def answers(model, meant, **kwargs):
    """The probabilities of the most probable class, by the name of the picture."""
    load = image_loader(model, **kwargs)
    with torch.inference_mode():
        images = {path: load(path) for path in meant}
        return {path.name: pytest.approx(float(model(x[None]).softmax(dim=1).max()), abs=1e-5)
                for path, x in images.items()}


def test_runner_sees_what_is_meant(model, exported, pictures, capsys):
    _, meant = pictures
    check(map(image_loader(model), meant), meant)
    assert onnx_runner.main([*map(str, meant), '--folder', str(exported), '--json', '--threads', '1']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row['path'].rpartition('/')[2]: row['probabilities'][0] for row in rows} == answers(model, meant)


@pytest.fixture
def large(tmp_path):
    """A large JPEG file whose finest details are gone where it is decoded at a fraction of its size."""
    noise = np.random.default_rng(1).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    stripes = np.tile(np.asarray([0, 255], dtype=np.uint8), (1024, 384))[..., None]
    scene = Image.fromarray(noise).resize((768, 1024), Image.Resampling.BICUBIC)
    scene = Image.blend(scene, Image.fromarray(stripes.repeat(3, axis=2)), 0.5)
    paths = [tmp_path / 'large' / f'class{label}' / 'large.jpg' for label in range(4)]
    for path in paths:
        path.parent.mkdir(parents=True)
        scene.save(path, quality=95)
    return paths[0]


@pytest.fixture(scope='module')
def exported(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('exports') / 'out'
    assert main(['export', f'local-dir:{folder}', str(out)]) == 0
    return out


@pytest.mark.parametrize(('gap', 'width'), [('none', 768), ('4', 384), (None, 192), ('1', 96)])
@pytest.mark.parametrize('command', ['predict', 'validate', 'runner'])
def test_large_photographs_are_decoded_at_the_size_needed(
        command, gap, width, folder, exported, large, monkeypatch):
    """The model needs 73 of the 768 pixels: 64 are the central 87.5 % of them."""
    widths = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, 'resize',
        lambda image, *args, **kwargs: widths.append(image.width) or resize(image, *args, **kwargs))
    option = [] if gap is None else ['--reducing-gap', gap]
    if command == 'runner':
        assert onnx_runner.main([str(large), '--folder', str(exported), '--threads', '1', *option]) == 0
    else:
        assert main([*arguments(command, folder, str(large.parents[1]), ''), *option]) == 0
    assert set(widths) == {width}


@pytest.fixture
def named(pictures, tmp_path):
    """The pictures in a folder of an odd name, and two files of odd names that are no images."""
    root = tmp_path / 'a\x1b[31mb'
    shutil.copytree(pictures[0], root)
    for name in (b'c\x1b[2J\n.png', b'd\xe9.png'):
        with open(os.fsencode(root / 'class0') + b'/' + name, 'wb') as file:
            file.write(b'no image')
    return root


def check_names(captured):
    """Names came out escaped."""
    text = captured.out + captured.err
    assert all(c.isprintable() for c in text.replace('\n', ''))
    lines = captured.err.splitlines()
    assert any(line.startswith('timm-drnet ') and r'c\x1b[2J\n.png: not an image' in line for line in lines)


@pytest.mark.parametrize('command', ['predict', 'validate', 'analyze', 'budget'])
def test_names_are_escaped(command, folder, named, capfd):
    assert main(arguments(command, folder, str(named), str(named.parent / 'o\x1b[1mut'))) == 1
    captured = capfd.readouterr()
    check_names(captured)
    assert r'd\udce9.png: not an image' in captured.err
    assert main(arguments(command, folder, str(named / 'none'), str(named.parent / 'o\x1b[1mther'))) == 2
    assert r'a\x1b[31mb' in capfd.readouterr().err


@pytest.mark.slow
def test_classify_sees_what_is_meant_and_escapes_names(ray_here, folder, model, pictures, named, large, capfd):
    os.remove(os.fsencode(named / 'class0') + b'/d\xe9.png')  # a name that does not go into a Parquet file
    os.link(large, named / large.name)
    out = named.parent / 'o\x1b[1mut'
    assert main([*arguments('classify', folder, str(named), str(out)), '--reducing-gap', 'none']) == 1
    check_names(capfd.readouterr())
    rows = [row for row in pq.read_table(out).to_pylist() if row['error'] is None]
    assert {row['path'].rpartition('/')[2]: row['probability'] for row in rows} == answers(
        model, [*pictures[1], large], reducing_gap=None)
