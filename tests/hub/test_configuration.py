"""A config.json that lies: one line from the commands, one kind of error from timm.create_model."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.hub.configuration import ConfigError, check_fields
from timm_drnet.hub.publishing import save_folder
from timm_drnet.hub.zoo import default_cfgs

PHOTO = str(next((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg')))

# The field, a value that it cannot have, and words of the error.
LIES = [
    ('num_classes', -1, 'num_classes is -1'),
    ('num_classes', None, 'num_classes is None'),
    ('num_classes', True, 'num_classes is True'),
    ('label_names', 5, 'label_names is 5'),
    ('label_names', ['a', 2, 'c', 'd', 'e'], 'label_names is'),
    ('pretrained_cfg.crop_pct', 1e-5, 'crop_pct is 1e-05, but has to be a number from 0.1 to 2'),
    ('pretrained_cfg.crop_pct', 'abc', "crop_pct is 'abc'"),
    ('pretrained_cfg.interpolation', 'bicubik', "interpolation is 'bicubik', but has to be nearest, bilinear,"),
    ('pretrained_cfg.interpolation', ['bicubic'], 'interpolation is'),
    ('pretrained_cfg.mean', 'abc', "mean is 'abc'"),
    ('pretrained_cfg.mean', [0.5, float('nan'), 0.5], 'mean is [0.5, nan, 0.5]'),
    ('pretrained_cfg.std', [0.2, 0, 0.2], 'std is [0.2, 0, 0.2], but has to be a list of numbers from 0.001 to 1000'),
    ('pretrained_cfg.input_size', [3, 64], 'has to be three whole numbers from 1 to 8192'),
    ('pretrained_cfg.custom_load', 'hf', "custom_load is 'hf'"),
    ('pretrained_cfg.hf_hub_filename', 'pytorch_model.bin', 'the name of a .safetensors file'),
    ('pretrained_cfg.url', 'http://example.org/x.pth', 'has to be left out'),
    ('pretrained_cfg.state_dict', {'a': 1}, 'has to be left out'),
    ('pretrained_cfg.classifier', 5, 'classifier is 5'),
    ('pretrained_cfg.no_such_field', 1, "'no_such_field', which this version of timm does not know"),
    ('model_args.resolutions', 'abc', "model_args.resolutions is 'abc'"),
    ('model_args.resolutions', list(range(8192, 0, -1)), 'has to be a list of at most 64 whole numbers from 1 to 8192'),
    ('model_args.backbone', 5, 'model_args.backbone is 5'),
    ('model_args.num_classes', 7, 'contradicts itself: num_classes is 5, and model_args.num_classes is 7'),
    ('model_args.pretrained_strict', False, 'a part of the model would stay random'),
]

# What timm trips over before it calls this package.
BEFORE = [
    ('architecture', 5, 'architecture is 5, but has to be a string'),
    ('architecture', 'resnet18', "of the architecture 'resnet18', which is not a DRNet"),
    ('pretrained_cfg', [1], 'pretrained_cfg is [1], but has to be an object'),
    ('model_args', 'abc', "model_args is 'abc', but has to be an object"),
    ('pretrained_cfg.input_size', 5, 'input_size is 5'),
]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder with a tiny model."""
    folder = tmp_path_factory.mktemp('saved')
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48), predictor='inverted_residual', predictor_size=32, num_classes=5)
    save_folder(model, folder, labels=list('abcde'))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Another folder with its weights and configuration."""
    for path in saved.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def write_config(folder, field, value):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    group, _, key = field.rpartition('.')
    (config[group] if group else config)[key] = value
    path.unlink()
    path.write_text(json.dumps(config))


def predict(folder, capsys):
    code = main(['predict', PHOTO, '--model', f'local-dir:{folder}', '--json'])
    out, err = capsys.readouterr()
    return code, out, err


def is_refused(answer, folder, words):
    code, out, err = answer
    assert (code, out) == (2, '')
    [line] = err.splitlines()
    assert str(folder) in line
    assert words in line


def test_truth_is_told(folder, capsys):
    code, out, _ = predict(folder, capsys)
    assert code == 0
    assert json.loads(out)['images'][0]['labels'][0]['label'] in list('abcde')


@pytest.mark.parametrize(('field', 'value', 'words'), LIES)
def test_lie_is_one_line_and_one_kind_of_error(folder, capsys, field, value, words):
    write_config(folder, field, value)
    is_refused(predict(folder, capsys), folder, words)
    with pytest.raises(ConfigError) as caught:
        timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert words in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(('field', 'value', 'words'), BEFORE)
def test_what_timm_trips_over_is_explained_by_the_command(folder, capsys, field, value, words):
    write_config(folder, field, value)
    is_refused(predict(folder, capsys), folder, words)


@pytest.mark.parametrize(('content', 'words'), [
    (b'<html>', 'is not JSON'), (b'[' * 100_000, 'is not JSON'), (b'\xff', 'is not JSON'), (b'[1]', 'it holds a list'),
    (b'{"model_type": "vit"}', "it has no 'architecture'"), (None, 'there is no '),
])
def test_what_is_no_configuration(folder, capsys, content, words):
    (folder / 'config.json').unlink()
    if content is not None:
        (folder / 'config.json').write_bytes(content)
    is_refused(predict(folder, capsys), folder, words)


def test_pickle_in_a_folder_is_not_loaded(folder, capsys):
    model = timm.create_model(f'local-dir:{folder}')
    (folder / 'model.safetensors').unlink()
    torch.save(model.state_dict(), folder / 'pytorch_model.bin')
    is_refused(predict(folder, capsys), folder, 'has no model.safetensors')
    with pytest.raises(RuntimeError, match=r'has no model\.safetensors.*safe_serialization=True'):
        timm.create_model(f'local-dir:{folder}', pretrained=True)
    (folder / 'model.safetensors').write_bytes(b'garbage ' * 100)
    with pytest.raises(RuntimeError, match=r'model\.safetensors is no safetensors file'):
        timm.create_model(f'local-dir:{folder}', pretrained=True)


def test_weights_that_are_no_numbers_are_refused(folder, capsys):
    state = timm.create_model(f'local-dir:{folder}', pretrained=True).state_dict()
    state['predictor.classifier.weight'][0, 0] = float('inf')
    (folder / 'model.safetensors').unlink()
    save_file(state, folder / 'model.safetensors')
    is_refused(predict(folder, capsys), folder, 'damaged: predictor.classifier.weight has values that are infinite')


def test_registered_configurations_are_true():
    for name, default in default_cfgs.items():
        for tag, cfg in default.cfgs.items():
            places = ('url', 'file', 'state_dict', 'custom_load')
            check_fields({k: v for k, v in vars(cfg).items() if k not in places}, f'{name}.{tag}')
