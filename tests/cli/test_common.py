import re
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

import timm_drnet
from timm_drnet import DEFAULT_MODEL
from timm_drnet.cli import main
from timm_drnet.cli.common import first_line, load_model, pick_device
from timm_drnet.cli.output import UserError
from timm_drnet.data.labels import class_labels
from timm_drnet.data.reading import image_loader
from timm_drnet.hub.publishing import disown_source, save_folder
from timm_drnet.train.training_run import TrainingRun

PHOTO = str(next((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg')))

KWARGS = {'backbone': 'resnet10t', 'resolutions': (64, 32), 'predictor': 'inverted_residual'}


def save(path, classes=3, key='state_dict'):
    model = timm_drnet.create_drnet('resnet10t', resolutions=(64, 32), num_classes=classes,
                                    predictor='inverted_residual')
    torch.save({key: model.state_dict()}, path)
    return model


def test_checkpoint_of_a_training_run_is_loaded(tmp_path):
    trained = save(tmp_path / 'last.pth.tar').eval()
    model = load_model('drnet', 3, str(tmp_path / 'last.pth.tar'), **KWARGS)
    x = torch.randn(2, 3, 64, 64)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(x), trained(x))


def test_averaged_weights_are_preferred(tmp_path):
    plain, averaged = save(tmp_path / 'a'), save(tmp_path / 'b')
    torch.save({'state_dict': plain.state_dict(), 'state_dict_ema': averaged.state_dict()}, tmp_path / 'last.pth.tar')
    model = load_model('drnet', 3, str(tmp_path / 'last.pth.tar'), **KWARGS)
    torch.testing.assert_close(model.backbone.fc.weight, averaged.backbone.fc.weight)


def write(content):
    return lambda path: path.write_bytes(content)


def save_drnet(change=lambda state: state, **more):
    """Weights of `KWARGS` with three classes, changed."""

    def write(path):
        model = timm_drnet.create_drnet(num_classes=3, **KWARGS)
        torch.save({'state_dict': change(model.state_dict()), **more}, path)

    return write


def save_plain(name, prefix='', **kwargs):
    def write(path):
        state = timm.create_model(name, num_classes=3, **kwargs).state_dict()
        torch.save({f'{prefix}{key}': value for key, value in state.items()}, path)

    return write


def with_prefix(prefix):
    return lambda state: {'criterion.weight': torch.ones(3), **{f'{prefix}{key}': v for key, v in state.items()}}


def with_nan(state):
    state['backbone.bn1.norms.1.running_var'][3] = float('nan')
    return state


# What is given as --checkpoint, and words of the one line about it.
BAD_CHECKPOINTS = {
    'none': (lambda path: None, 'no such file'),
    'a folder': (lambda path: path.mkdir(), 'Is a directory'),
    'empty': (write(b''), 'is damaged .it is empty.; there is no good one'),
    'noise': (write(b'neither zip nor pickle'), 'not a checkpoint'),
    'a page': (write(b'\n<!DOCTYPE html>'), 'not a checkpoint but a web page in place of the file: download it again'),
    'a pointer': (write(b'version https://git-lfs.github.com/spec/v1\noid sha256:0'), 'Git LFS.*git lfs pull'),
    'a list': (lambda path: torch.save([torch.ones(2)], path), 'holds a list, not a dict'),
    'no tensors': (lambda path: torch.save({'state_dict': {'a': 1}}, path), "has a int as 'a' where"),
    'a list of weights': (lambda path: torch.save({'state_dict': [1]}, path), 'not a checkpoint'),
    'arguments': (save_drnet(args=Namespace(model_kwargs='abc')), 'model_kwargs that it records is a str'),
    "a backbone's arguments": (
        save_drnet(args=Namespace(model_kwargs={'norm_layer': 5})), 'cannot create model.*AssertionError.*check them'),
    'preparation': (save_drnet(args=Namespace(crop_pct=1e-5)), 'crop_pct is 1e-05, but has to be a number from 0.1 to'),
    'Lightning': (save_drnet(with_prefix('model.')), r"'model\.', such as 'model\.backbone\..*prefix\('model\.'\)"),
    'a plain model in Lightning': (save_plain('resnet10t', 'net.'), r"begin with 'net\.', such as 'net\.conv1\.0"),
    'another backbone': (save_plain('mobilenetv2_035'), r'conv1.0.weight is missing, and there is backbone\.conv_stem'),
    'another width': (save_plain('resnet10t', stem_width=8), r'conv1\.0\.weight is \(6, .* in the file and \(24, '),
    'classes': (save_drnet(), 'the weights are for 3 classes, not 5; leave the number out'),
    'NaN': (save_drnet(with_nan), r'damaged: backbone\.bn1\.norms\.1\.running_var has values that are infinite'),
}


@pytest.mark.parametrize('kind', BAD_CHECKPOINTS)
def test_bad_checkpoint_is_named(tmp_path, capsys, kind):
    make, words = BAD_CHECKPOINTS[kind]
    path = tmp_path / 'last.pth.tar'
    make(path)
    kwargs = [f'{key}={value}' for key, value in KWARGS.items()]
    classes = ['--num-classes', '5'] if kind == 'classes' else []
    assert main([
        'predict', PHOTO, '--model', 'drnet', '--checkpoint', str(path), *classes, '--model-kwargs', *kwargs]) == 2
    out, err = capsys.readouterr()
    assert out == ''
    [line] = err.splitlines()
    assert re.search(words, line), line
    assert str(path) in line or 'cannot create model' in line


def test_damaged_safetensors_file_is_named(tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(b'\xff' * 64)
    with pytest.raises(UserError, match='not a checkpoint'):
        load_model('drnet', 3, str(path), **KWARGS)


@pytest.mark.parametrize('command', [
    ['predict', PHOTO, '--model'], ['export', 'OUT'], ['validate', 'DATA'], ['analyze', 'DATA', 'OUT'],
    ['budget', 'DATA'], ['adapt', 'DATA', '--output', 'OUT'],
    ['bench', '--data', PHOTO, '-b', '1', '--repeats', '1'], ['classify', '--input', PHOTO, '--output', 'OUT'],
    ['publish', 'ORG/NAME', '--dry-run', 'OUT']],
    ids=lambda command: command[0])
def test_weights_are_for_the_classes_that_are_asked_for(tmp_path, capsys, command):
    """Otherwise the classifier would be a random one."""
    places = {'DATA': str(tmp_path), 'OUT': str(tmp_path / 'out')}
    name, *rest = [places.get(argument, argument) for argument in command]
    argv = [name, *rest, DEFAULT_MODEL] if name == 'predict' else [name, DEFAULT_MODEL, *rest]
    assert main([*argv, '--num-classes', '7']) == 2
    out, err = capsys.readouterr()
    assert out == ''
    assert f"--num-classes 7: the weights of '{DEFAULT_MODEL}' are for 1000 classes" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_number_of_classes_and_channels_is_that_of_the_checkpoint(tmp_path):
    trained = timm_drnet.create_drnet(num_classes=4, in_chans=1, **KWARGS).eval()
    recorded = Namespace(model_kwargs=KWARGS, in_chans=1, num_classes=None)
    torch.save({'state_dict': trained.state_dict(), 'args': recorded}, tmp_path / 'last.pth.tar')
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(load_model('drnet', None, str(tmp_path / 'last.pth.tar'))(x), trained(x))
        embeddings = load_model('drnet', 0, str(tmp_path / 'last.pth.tar'))(x)
        assert torch.equal(trained.get_classifier()(embeddings), trained(x))


@pytest.mark.parametrize(('folders', 'names'), [
    (('b10', 'b9', 'a'), ('a', 'b9', 'b10')),  # in timm's order
    (('b', 'a'), ('0', '1', '2')),  # other data by now
    ((), ('0', '1', '2')),
])
def test_names_of_the_classes_are_those_of_the_folder_that_train_py_recorded(tmp_path, folders, names):
    for name in folders:
        (tmp_path / 'data/train' / name).mkdir(parents=True)
        (tmp_path / 'data/train' / name / 'one.jpg').touch()
    trained = timm_drnet.create_drnet(num_classes=3, **KWARGS)
    recorded = Namespace(model_kwargs=KWARGS, data_dir=str(tmp_path / 'data'), dataset='', train_split='train')
    torch.save({'state_dict': trained.state_dict(), 'args': recorded}, tmp_path / 'last.pth.tar')
    # What the weights were that the training may have started from, is not what these are.
    overlay = {'label_names': ['x', 'y', 'z'], 'license': 'mit'}
    model = load_model('drnet', None, str(tmp_path / 'last.pth.tar'), pretrained_cfg_overlay=overlay)
    assert class_labels(model) == names
    assert 'license' not in model.pretrained_cfg
    save_folder(model, tmp_path / 'saved')
    assert class_labels(timm.create_model(f'local-dir:{tmp_path / "saved"}')) == names


def test_thousand_classes_of_imagenet_keep_their_descriptions(tmp_path):
    run = TrainingRun({'data_dir': str(tmp_path)})
    for name in ImageNetInfo().label_names():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'one.JPEG').touch()
    model = timm_drnet.create_drnet(**KWARGS)
    disown_source(model, run)
    assert class_labels(model)[0].startswith('tench')
    (tmp_path / 'n01440764').rename(tmp_path / 'n0')  # a thousand classes of somebody's own
    disown_source(model, run)
    assert class_labels(model)[0] == 'n0'


@pytest.mark.parametrize(('command', 'told'), [
    (['predict', PHOTO, '--model', 'FILE'], 'the name of its model, as in "drnet_resnet50 --checkpoint FILE"'),
    (['validate', 'FILE', '.'], 'the name of its model, as in "drnet_resnet50 --checkpoint FILE"'),
    (['flops', 'FILE'], 'the name of its model, as in "drnet_resnet50"'),
    (['predict', PHOTO, '--model', 'none.pth.tar'], 'none.pth.tar: no such file'),
    (['predict', PHOTO, '--model', 'FOLDER'], 'this is a folder; the model saved in it is local-dir:'),
])
def test_path_in_place_of_the_name_of_a_model(command, told, tmp_path, capsys):
    path = str(tmp_path / 'last.pth.tar')
    torch.save({'state_dict': {}, 'args': Namespace(model='drnet_resnet50')}, path)
    places = {'FILE': path, 'FOLDER': str(tmp_path)}
    assert main([places.get(argument, argument) for argument in command]) == 2
    err = capsys.readouterr().err
    assert told.replace('FILE', path) in err
    assert err.count('\n') == 1


def test_model_without_weights_says_how_to_give_them():
    with pytest.raises(UserError, match='--checkpoint'):
        load_model('drnet', backbone='mobilenetv2_035')


@pytest.mark.parametrize(('error', 'told'), [
    (PermissionError(13, 'Permission denied', 'photos/inner'), 'photos/inner: Permission denied'),
    (ValueError('\nno such thing\nat all'), 'no such thing'),
    (KeyError(), 'KeyError'),
])
def test_errors_are_told_in_one_line(error, told):
    assert first_line(error) == told


def test_unknown_device_is_refused():
    assert pick_device('cpu').type == 'cpu'
    with pytest.raises(UserError, match='--device nonsense'):
        pick_device('nonsense')


def test_arguments_recorded_by_a_training_run_are_the_defaults(tmp_path):
    model = timm_drnet.create_drnet('resnet10t', num_classes=3, **{k: v for k, v in KWARGS.items() if k != 'backbone'})
    recorded = Namespace(model_kwargs={**KWARGS, 'stage': 'pretrain', 'tau': 2.0})
    torch.save({'state_dict': model.state_dict(), 'args': recorded}, tmp_path / 'last.pth.tar')
    loaded = load_model('drnet', 3, str(tmp_path / 'last.pth.tar'), tau=3.0)
    assert (loaded.resolutions, loaded.args.stage, loaded.args.tau) == ((64, 32), 'pretrain', 3.0)


def test_images_are_prepared_as_the_training_run_recorded(tmp_path):
    model = timm_drnet.create_drnet('test_resnet', resolutions=(64, 48, 32), num_classes=5)
    recorded = {
        'model_kwargs': {'backbone': 'test_resnet', 'resolutions': (64, 48, 32)}, 'num_classes': 5,
        'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6], 'crop_pct': 0.5, 'interpolation': 'nearest',
        'img_size': None, 'input_size': [3, 64, 64]}
    torch.save({'state_dict': model.state_dict(), 'args': Namespace(**recorded)}, tmp_path / 'last.pth.tar')
    colours = torch.arange(128)
    Image.fromarray(torch.stack((colours.expand(128, -1),) * 3, dim=2).byte().numpy()).save(tmp_path / 'image.png')

    image = image_loader(load_model('drnet', 5, str(tmp_path / 'last.pth.tar')))(tmp_path / 'image.png')
    # Half of the image at its own size: its columns 32 to 95.
    for channel, (mean, std) in enumerate([(0.1, 0.4), (0.2, 0.5), (0.3, 0.6)]):
        expected = (colours[32:96] / 255 - mean) / std
        torch.testing.assert_close(image[channel], expected.expand(64, -1))
