"""The registered models, DRNets around other families of timm, and their way through timm's configurations."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models import resolve_model_input_args, save_for_hf
from tiny_models import FAMILIES
from torch import nn

import timm_drnet


def small(x, size):
    return F.interpolate(x, (size, size), mode='bilinear', align_corners=False)


@pytest.mark.parametrize('name', FAMILIES)
def test_every_branch_of_a_family_equals_its_plain_model(make_family, make_plain, images, name):
    model = make_family(name)
    x = images(2)
    for j, r in enumerate(model.resolutions):
        expected = make_plain(model, j, name, **FAMILIES[name][0])(small(x, r))
        assert expected.isfinite().all()
        torch.testing.assert_close(model.forward_at(x, j), expected)
        torch.testing.assert_close(model.branch(j)(small(x, r)), expected)


@pytest.mark.parametrize('name', FAMILIES)
def test_family_without_classifier_gives_routed_embeddings(make_family, spread_choices, images, name):
    model = make_family(name, num_classes=0, in_chans=1)
    x = images(6, channels=1)
    choice = spread_choices(model, x)
    embeddings = model(x)
    assert embeddings.shape == (6, model.head_hidden_size)
    assert torch.equal(model(x), embeddings)
    assert torch.equal(model.forward_at(x, choice), embeddings)
    expected = torch.cat([
        model.branch(j)(small(x[i:i + 1], model.resolutions[j])) for i, j in enumerate(choice.tolist())])
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize('name', ['regnety_002', 'densenet121', 'dla46_c'])
def test_every_parameter_of_a_family_gets_a_gradient(make_family, images, name):
    model = make_family(name).train()
    model(images(2)).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name', ['test_convnext', 'test_vit', 'test_nfnet', 'test_efficientnet_gn'])
def test_backbone_without_batchnorm_is_refused(make_tiny, name):
    with pytest.raises(ValueError, match='has no BatchNorm.*Use a CNN that is built on BatchNorm2d'):
        make_tiny(name)


def test_unknown_backbone_is_refused_by_name():
    with pytest.raises(ValueError, match="Unknown backbone 'resnet0815'"):
        timm_drnet.create_drnet('resnet0815')


@pytest.mark.parametrize('create', [
    lambda **kwargs: timm_drnet.create_drnet('test_resnet', **kwargs),
    lambda **kwargs: timm.create_model('drnet_resnet18d_050', **kwargs),
])
def test_unknown_argument_is_refused(create):
    with pytest.raises(TypeError, match='resolution'):
        create(resolution=(64, 48))


def test_all_models_are_registered():
    assert timm.list_models('drnet*') == [
        'drnet', 'drnet_efficientnet_lite0', 'drnet_mobilenetv2', 'drnet_resnet18d_050', 'drnet_resnet50',
        'drnet_resnet101']
    assert timm.list_models('drnet*', pretrained=True) == [
        timm_drnet.DEFAULT_MODEL, 'drnet_mobilenetv2.ra_in1k', 'drnet_resnet50.mindspore_in1k',
        'drnet_resnet50.tv_in1k', 'drnet_resnet101.tv_in1k']


@pytest.mark.parametrize(('name', 'tag'), [
    ('drnet_resnet50', 'mindspore_in1k'), ('drnet_resnet101', 'tv_in1k'), ('drnet_mobilenetv2', 'ra_in1k')])
def test_default_tags(name, tag):
    assert timm.create_model(name, device='meta').pretrained_cfg['tag'] == tag


@pytest.mark.parametrize(('name', 'plain'), [
    ('drnet_resnet50.tv_in1k', 'resnet50.tv_in1k'), ('drnet_resnet101.tv_in1k', 'resnet101.tv_in1k'),
    ('drnet_mobilenetv2.ra_in1k', 'mobilenetv2_100.ra_in1k')])
def test_tag_of_a_plain_backbone_has_its_configuration(name, plain):
    model = timm.create_model(name, device='meta')
    expected = timm.models.get_pretrained_cfg(plain)
    for key in ('hf_hub_id', 'mean', 'std', 'interpolation', 'crop_pct', 'input_size', 'license'):
        assert model.pretrained_cfg[key] == getattr(expected, key)
    state = model.state_dict()
    assert model.pretrained_cfg['classifier'] + '.weight' in state
    assert model.pretrained_cfg['first_conv'] + '.weight' in state


@pytest.mark.parametrize(('name', 'resolutions', 'predictor_size', 'size'), [
    ('drnet', (224, 168, 112), 128, 224),
    ('drnet_resnet50', (224, 168, 112), 128, 224),
    ('drnet_resnet101', (224, 168, 112), 128, 224),
    ('drnet_mobilenetv2', (224, 196, 168), 64, 224),
    ('drnet_resnet18d_050', (128, 112, 96), 64, 128),
])
def test_defaults(name, resolutions, predictor_size, size):
    model = timm.create_model(name, device='meta')
    assert isinstance(model, timm_drnet.DRNet)
    assert (model.resolutions, model.args.predictor_size) == (resolutions, predictor_size)
    assert (model.args.stage, model.args.alpha, model.args.eta, model.args.tau) == ('joint', None, 0.2, 1.0)
    assert model.args.resolution_aware_norm
    assert resolve_model_data_config(model)['input_size'] == (3, size, size)


def test_a_lone_resolution_of_the_model_that_ships_is_refused_by_name():
    with pytest.raises(ValueError, match='Invalid resolutions 224'):
        timm.create_model('drnet_efficientnet_lite0', resolutions=224)


def test_create_drnet_is_the_registered_model():
    torch.manual_seed(0)
    one = timm_drnet.create_drnet('test_resnet', resolutions=(64, 48), num_classes=5)
    torch.manual_seed(0)
    other = timm.create_model('drnet', backbone='test_resnet', resolutions=(64, 48), num_classes=5)
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize('backbone', ['test_resnet', 'test_efficientnet', 'test_byobnet'])
def test_configuration_is_that_of_the_backbone_with_names_of_the_model(backbone):
    model = timm_drnet.create_drnet(backbone, num_classes=5)
    plain = timm.create_model(backbone)
    state, cfg = model.state_dict(), model.pretrained_cfg
    for key in ('mean', 'std', 'interpolation', 'crop_pct', 'input_size', 'pool_size'):
        assert cfg[key] == plain.pretrained_cfg[key]
    assert cfg['classifier'] + '.weight' in state
    assert all(f'{name}.weight' in state for name in model._traits['first_conv'])
    assert [state[f'{name}.weight'].shape[1] for name in model._traits['first_conv']] == [3, 3]
    assert model.resolutions == (160, 120, 80)  # 1, 3/4 and 1/2 of the backbone's own size


@pytest.mark.parametrize('name', ['drnet', 'drnet_resnet50', 'drnet_resnet18d_050'])
def test_images_are_as_large_as_the_largest_resolution(name):
    model = timm.create_model(name, resolutions=(288, 224, 160), device='meta')
    assert resolve_model_data_config(model)['input_size'] == (3, 288, 288)
    overlay = {'input_size': (3, 256, 256)}
    model = timm.create_model(name, resolutions=(288, 224), device='meta', pretrained_cfg_overlay=overlay)
    assert resolve_model_data_config(model)['input_size'] == (3, 256, 256)


def test_scripts_arguments_keep_the_configuration_of_the_backbone():
    overlay = {'file': 'weights.pth', 'num_classes': -1}
    args = resolve_model_input_args('drnet', {}, backbone='test_efficientnet', pretrained_cfg_overlay=overlay)
    model = timm.create_model(**args)
    plain = timm_drnet.create_drnet('test_efficientnet')
    assert model.pretrained_cfg == {**plain.pretrained_cfg, **overlay}


def test_features_only():
    model = timm.create_model('drnet_resnet18d_050', features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    features = model(x)
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    whole = timm.create_model('drnet_resnet18d_050').eval()
    whole.load_state_dict(model.model.state_dict(), strict=False)
    for feature, expected in zip(features, whole.forward_intermediates(x, intermediates_only=True), strict=True):
        torch.testing.assert_close(feature, expected)


ARGS = {
    'resolutions': (80, 64), 'predictor_size': 48, 'stage': 'pretrain', 'alpha': 0.3, 'eta': 0.5, 'tau': 0.7,
    'resolution_aware_norm': False,
}


@pytest.mark.parametrize('create', [
    lambda **kwargs: timm.create_model('drnet_resnet18d_050', **kwargs),
    lambda **kwargs: timm_drnet.create_drnet('resnet10t', predictor='inverted_residual', **kwargs),
], ids=['registered', 'custom'])
def test_saved_model_comes_back_with_all_arguments(create, shake, images, tmp_path):
    model = shake(create(num_classes=7, in_chans=1, **ARGS)).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    for name, value in ARGS.items():
        assert getattr(loaded.args, name) == value
    assert loaded.pretrained_cfg['input_size'] == (1, 80, 80)
    x = images(3, channels=1)
    assert torch.equal(loaded(x), model(x))
    for j in range(2):
        assert torch.equal(loaded.forward_at(x, j), model.forward_at(x, j))


@pytest.mark.parametrize('predictor', ['residual', 'inverted_residual'])
@pytest.mark.parametrize('create', [
    lambda **kwargs: timm.create_model('drnet_resnet18d_050', **kwargs),
    lambda **kwargs: timm_drnet.create_drnet('test_efficientnet', **kwargs),
], ids=['registered', 'custom'])
def test_saved_model_adapts_to_channels_and_classes(create, tmp_path, predictor):
    model = create(num_classes=7, predictor=predictor, resolutions=(64, 32)).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, in_chans=1, num_classes=3).eval()
    for part in ('backbone', 'predictor'):
        conv, source = (
            next(m for m in getattr(one, part).modules() if isinstance(m, nn.Conv2d)) for one in (loaded, model))
        torch.testing.assert_close(conv.weight, source.weight.sum(dim=1, keepdim=True))
    assert loaded(torch.randn(2, 1, 64, 64)).shape == (2, 3)


def test_saved_model_takes_other_arguments(make_tiny, tmp_path):
    model = make_tiny(alpha=0.02)
    save_for_hf(model, tmp_path, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, alpha=0.01, resolutions=(96, 64, 48))
    assert (loaded.args.alpha, loaded.resolutions) == (0.01, (96, 64, 48))
    assert torch.equal(loaded.backbone.fc.weight, model.backbone.fc.weight)


WITHOUT_TAGS = """
import json
import timm
from timm.models import _registry
for name in ('resnet50.tv_in1k', 'resnet101.tv_in1k'):
    for names in (_registry._model_pretrained_cfgs, _registry._model_has_pretrained):
        names.pop(name) if isinstance(names, dict) else names.remove(name)
import timm_drnet
from timm_drnet.cli import main
model = timm.create_model('drnet_resnet101', device='meta')
print(json.dumps([model.pretrained_cfg, timm.list_models('drnet_resnet*', pretrained=True)]))
main(['predict', 'PHOTO', '--model', 'drnet_resnet101'])
"""


def test_timm_may_retire_a_tag():
    """The package is imported and its other models are there; who asks for the weights is told."""
    photo = str(next((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg')))
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', WITHOUT_TAGS.replace('PHOTO', photo)], capture_output=True, text=True,
        check=True)
    cfg, pretrained = json.loads(done.stdout)
    assert cfg['tag'] == 'tv_in1k'
    assert (cfg['first_conv'], cfg['classifier']) == ('backbone.conv1', 'backbone.fc')
    assert pretrained == ['drnet_resnet50.mindspore_in1k']
    assert 'No pretrained weights exist for resnet101.tv_in1k in timm' in done.stderr
    assert 'Give trained weights with --checkpoint' in done.stderr
