"""``timm-drnet predict`` from its arguments to its output."""

import json
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.data.files import find_images
from timm_drnet.data.reading import image_loader
from timm_drnet.evaluate.prediction import predict_images

PHOTOS = Path(__file__).parents[2] / 'examples' / 'photos'
MODEL_KWARGS = {'backbone': 'resnet10t', 'resolutions': (64, 48, 32), 'predictor': 'inverted_residual'}


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """Weights that route the example photographs to different resolutions."""
    torch.manual_seed(0)
    model = timm.create_model('drnet', num_classes=5, **MODEL_KWARGS).eval()
    with torch.no_grad():
        for name, buffer in model.predictor.named_buffers():
            if name.endswith('running_var'):
                buffer.fill_(0.05)
        torch.nn.init.normal_(model.predictor.classifier.weight)
        torch.nn.init.normal_(model.backbone.fc.weight)
        scores = torch.stack([_scores(model, path) for path in find_images([PHOTOS])])
        model.predictor.classifier.bias -= scores.mean(dim=0)
    path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
    save_file(model.state_dict(), path)
    return path


def _scores(model, path):
    return model.predictor(image_loader(model)(path)[None])[0]


@pytest.fixture
def predict(checkpoint, capsys):
    """Run the command on the tiny model; returns exit code, stdout and stderr."""
    def run(*arguments):
        code = main([
            'predict', *map(str, arguments), '--model', 'drnet', '--num-classes', '5', '--checkpoint', str(checkpoint),
            '--model-kwargs', *(f'{key}={value}'.replace(' ', '') for key, value in MODEL_KWARGS.items())])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def expected(checkpoint):
    model = timm.create_model('drnet', num_classes=5, checkpoint_path=str(checkpoint), **MODEL_KWARGS).eval()
    return predict_images(model, find_images([PHOTOS]), topk=2), timm_drnet.cost_table(model)


def test_examples_are_a_dozen_photographs_with_credit():
    photographs = find_images([PHOTOS])
    assert len(photographs) == 12
    credit = (PHOTOS / 'README.md').read_text(encoding='utf-8')
    for path in photographs:
        assert f'`{path.name}`' in credit
    assert 'CC BY 4.0' in credit


def test_table(predict, expected):
    code, out, err = predict(PHOTOS)
    result, rows = expected
    assert code == 0
    assert err == ''
    lines = out.splitlines()
    assert lines[0].split() == ['image', 'label', 'probability', 'resolution', 'cost']
    for line, image in zip(lines[1:13], result.images, strict=True):
        assert line.split() == [
            str(image.path), image.labels[0], f'{image.probabilities[0]:.1%}', str(image.resolution), 'px',
            f'{image.flops / 1e6:.1f}' if image.flops < 1e8 else f'{image.flops / 1e6:.0f}', 'MFLOPs']
    assert sum(count > 0 for count in result.counts.values()) > 1  # or the columns would not have been tested
    assert lines[14] == '12 images: ' + ', '.join(f'{n} at {r} px' for r, n in result.counts.items())
    assert f'{result.flops / (12 * rows[0].backbone_flops):.1%} of' in lines[15]
    assert 'at 64 px' in lines[15]


def test_json(predict, expected):
    code, out, _ = predict(PHOTOS, '--json', '--topk', 2, '--batch-size', 5)
    document = json.loads(out)
    result, rows = expected
    assert code == 0
    assert [image['path'] for image in document['images']] == [str(image.path) for image in result.images]
    for told, image in zip(document['images'], result.images, strict=True):
        assert [entry['label'] for entry in told['labels']] == list(image.labels)
        assert [entry['probability'] for entry in told['labels']] == pytest.approx(image.probabilities, abs=1e-5)
        assert told['resolution'] == image.resolution
        assert told['gflops'] == pytest.approx(image.flops / 1e9)
    total = document['total']
    assert total['images'] == 12
    assert total['gflops'] == pytest.approx(sum(image['gflops'] for image in document['images']))
    assert total['largest_gflops'] == pytest.approx(12 * rows[0].backbone_flops / 1e9)
    assert total['fraction'] == pytest.approx(total['gflops'] / total['largest_gflops'])
    assert total['shares'] == {str(r): n / 12 for r, n in result.counts.items()}
    assert document['unreadable'] == []


def test_unreadable_file_is_told_skipped_and_counts(predict, tmp_path):
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'no image')
    code, out, err = predict(broken, PHOTOS / 'llama.jpg')
    assert code == 1
    assert 'llama.jpg' in out
    assert '1 image:' in out
    assert f'skipped {broken}: not an image' in err
    code, out, err = predict(broken, PHOTOS / 'llama.jpg', '--json')
    assert code == 1
    assert json.loads(out)['unreadable'] == [
        {'path': str(broken), 'reason': 'not an image of a format that Pillow can read'}]


def test_nothing_readable(predict, tmp_path):
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'')
    code, out, err = predict(broken, '--json', '--save', tmp_path / 'sheet.png')
    assert code == 1
    assert json.loads(out)['total'] == {
        'images': 0, 'gflops': 0, 'largest_gflops': 0, 'fraction': None, 'shares': {'64': 0, '48': 0, '32': 0}}
    assert 'not drawn' in err
    assert not (tmp_path / 'sheet.png').exists()
    code, out, err = predict(broken)
    assert (code, out) == (1, '')
    assert 'the file is empty' in err


def test_labels(predict, tmp_path):
    labels = tmp_path / 'labels.txt'
    labels.write_text('\ufeffzero\none\ntwo\nthree \nfour\n\n', encoding='utf-8')
    _, out, _ = predict(PHOTOS / 'llama.jpg', '--labels', labels, '--topk', 5, '--json')
    (image,) = json.loads(out)['images']
    assert {entry['label'] for entry in image['labels']} == {'zero', 'one', 'two', 'three', 'four'}
    _, numbered, _ = predict(PHOTOS / 'llama.jpg', '--json')
    words = ('zero', 'one', 'two', 'three', 'four')
    number = json.loads(numbered)['images'][0]['labels'][0]['label']
    assert image['labels'][0]['label'] == words[int(number)]


@pytest.mark.parametrize('name', ['sheet.png', 'sheet.JPG'])
def test_save(predict, tmp_path, name):
    code, _, err = predict(PHOTOS, '--save', tmp_path / name)
    assert (code, err) == (0, '')
    with Image.open(tmp_path / name) as sheet:
        assert sheet.format == ('PNG' if name.endswith('png') else 'JPEG')
        assert min(sheet.size) > 400


def test_odd_file_name_is_printed(predict, tmp_path):
    path = tmp_path / 'line\nbreak\udcff.png'
    try:
        Image.new('RGB', (9, 9)).save(path)
    except (OSError, UnicodeError):
        pytest.skip('the file system has no such names')
    code, out, _ = predict(path)
    assert code == 0
    assert 'line\\nbreak\\udcff.png' in out
    code, out, _ = predict(path, '--json')
    assert json.loads(out)['images'][0]['path'] == str(path)


@pytest.mark.parametrize(('arguments', 'told'), [
    (['{tmp}/nowhere.jpg'], '{tmp}/nowhere.jpg: no such file or folder'),
    (['{tmp}/*.jpg'], '{tmp}/*.jpg: no image matches'),
    (['{tmp}/empty'], '{tmp}/empty: no image in this folder'),
    (['{photo}', '--device', 'warp'], '--device warp'),
    (['{photo}', '--labels', '{tmp}/nowhere.txt'], '--labels {tmp}/nowhere.txt: No such file'),
    (['{photo}', '--labels', '{photo}'], '--labels {photo}: not a text file'),
    (['{photo}', '--labels', '{tmp}/two.txt'], '2 lines for the 5 classes'),
    (['{photo}', '--save', '{tmp}/sheet.xyz'], '--save {tmp}/sheet.xyz: cannot write this format'),
    (['{photo}', '--save', '{tmp}/nowhere/sheet.png'], 'no folder {tmp}/nowhere'),
    (['{photo}', '--save', '{tmp}/folder.png'], 'this is a folder'),
    (['{tmp}/own.png', '--save', '{tmp}/own.png'], 'one of the images'),
])
def test_bad_input_is_one_clear_line(predict, tmp_path, arguments, told):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'two.txt').write_text('a\nb\n')
    Image.new('RGB', (9, 9)).save(tmp_path / 'own.png')
    names = {'tmp': tmp_path, 'photo': PHOTOS / 'llama.jpg'}
    code, out, err = predict(*(argument.format(**names) for argument in arguments))
    assert (code, out) == (2, '')
    assert told.format(**names) in err
    assert err.startswith('timm-drnet predict: ')
    assert len(err.splitlines()) == 1
    assert Image.open(tmp_path / 'own.png').size == (9, 9)


def test_bad_output_is_noticed_before_the_model_is_loaded(capsys, tmp_path):
    code = main(['predict', str(PHOTOS), '--model', 'no such model', '--save', str(tmp_path / 'sheet.docx')])
    assert code == 2
    assert '--save' in capsys.readouterr().err
