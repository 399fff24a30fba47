from argparse import Namespace

import pytest
import torch
from PIL import Image

import timm_drnet
from timm_drnet.cli import main
from timm_drnet.cli.common import UserError, load_model, pick_device
from timm_drnet.data.reading import image_loader

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


@pytest.mark.parametrize(('content', 'words'), [
    (None, 'no such file'),
    (b'', 'is damaged .it is empty.; there is no good one'),
    (b'neither zip nor pickle', 'not a checkpoint'),
])
def test_bad_checkpoint_is_named(tmp_path, content, words):
    path = tmp_path / 'last.pth.tar'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load_model('drnet', 3, str(path), **KWARGS)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_damaged_safetensors_file_is_named(tmp_path):
    path = tmp_path / 'model.safetensors'
    path.write_bytes(b'\xff' * 64)
    with pytest.raises(UserError, match='not a checkpoint'):
        load_model('drnet', 3, str(path), **KWARGS)


def test_checkpoint_of_other_classes_is_refused(tmp_path):
    save(tmp_path / 'last.pth.tar', classes=4)
    with pytest.raises(UserError, match='with 3 classes'):
        load_model('drnet', 3, str(tmp_path / 'last.pth.tar'), **KWARGS)


def test_model_without_weights_says_how_to_give_them():
    with pytest.raises(UserError, match='--checkpoint'):
        load_model('drnet', backbone='mobilenetv2_035')


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


def test_positional_argument_behind_model_kwargs_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stop:
        main(['predict', '--model-kwargs', 'tau=2', 'photo.jpg'])
    assert stop.value.code == 2
    assert '--model-kwargs photo.jpg: use KEY=VALUE' in capsys.readouterr().err
