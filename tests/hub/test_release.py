"""The authors' release by its registered name, from a server on loopback."""

import hashlib

import pytest
import timm
import torch
from hub_server import Fault, HubServer
from timm.models import save_for_hf

from timm_drnet.hub import zoo
from timm_drnet.hub.mindspore.names import convert_checkpoints
from timm_drnet.hub.mindspore.reader import read_checkpoint

pytest_plugins = ['mindspore_files']

CLASSIFIER, PREDICTOR = zoo._MINDSPORE


@pytest.fixture(scope='module')
def expected(checkpoints):
    """The state dict that the files convert to."""
    return convert_checkpoints(*map(read_checkpoint, checkpoints))


@pytest.fixture
def server(checkpoints, monkeypatch, tmp_path):
    """Server of the files under the names of the release."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with HubServer() as server:
        for name, path in zip((CLASSIFIER, PREDICTOR), checkpoints, strict=True):
            server.plain[name] = path.read_bytes()
            monkeypatch.setitem(zoo._MINDSPORE, name, hashlib.sha256(server.plain[name]).hexdigest())
        yield server


@pytest.fixture
def create(server):
    """Function that creates the model with weights from the server."""

    def create(**kwargs):
        overlay = {'url': server.plain_url(CLASSIFIER), 'custom_load': True}
        return timm.create_model('drnet_resnet50', pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()

    return create


def test_registered_address():
    cfg = timm.models.get_pretrained_cfg('drnet_resnet50.mindspore_in1k')
    assert cfg.url == f'https://download.mindspore.cn/models/r1.10/{CLASSIFIER}'
    assert CLASSIFIER == 'drnet_classifier_ascend_v1100_imagenet2012_research_cv_acc77.25.ckpt'
    assert PREDICTOR == 'drnet_predictor_ascend_v1100_imagenet2012_research_cv_acc77.25.ckpt'
    assert (cfg.custom_load, cfg.license, cfg.num_classes) == (True, 'apache-2.0', 1000)
    assert (cfg.interpolation, cfg.crop_pct, cfg.input_size) == ('bilinear', 0.875, (3, 224, 224))


def test_release_is_downloaded_once_and_converted(create, server, expected, tmp_path, caplog):
    model = create()
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert 'untrained' not in caplog.text
    cache = tmp_path / 'hub' / 'checkpoints'
    assert sorted(path.name for path in cache.iterdir()) == sorted(server.plain)
    assert [request.path for request in server.requests] == [f'/files/{CLASSIFIER}', f'/files/{PREDICTOR}']
    save_for_hf(model, tmp_path / 'saved', safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())

    small = create(num_classes=7, in_chans=1)
    assert len(server.requests) == 2
    assert small(torch.randn(1, 1, 224, 224)).shape == (1, 7)
    for part in ('backbone', 'predictor'):
        stem = expected[f'{part}.conv1.weight'].sum(dim=1, keepdim=True)
        torch.testing.assert_close(small.get_submodule(f'{part}.conv1').weight, stem)
    assert torch.equal(small.backbone.layer4[2].conv3.weight, expected['backbone.layer4.2.conv3.weight'])
    assert small.backbone.fc.weight.shape == (7, 2048)


def test_release_gives_features(create, expected):
    features = create(features_only=True)
    assert torch.equal(features.model.backbone.conv1.weight, expected['backbone.conv1.weight'])
    assert [f.shape[-1] for f in features(torch.randn(1, 3, 64, 64))] == [32, 16, 8, 4, 2]


def test_damaged_predictor_leaves_nothing_broken(create, server, tmp_path):
    server.faults[f'files/{PREDICTOR}'] = Fault(cut_after=1_000_000)
    with pytest.raises(RuntimeError, match=f'Could not download .*{PREDICTOR}.*Nothing was kept. Try again'):
        create()
    cache = tmp_path / 'hub' / 'checkpoints'
    assert [path.name for path in cache.iterdir()] == [CLASSIFIER]
    server.faults.clear()
    assert create().predict_resolution(torch.randn(1, 3, 224, 224)).shape == (1,)


def test_cache_can_be_elsewhere(create, tmp_path):
    create(cache_dir=str(tmp_path / 'elsewhere'))
    assert len(list((tmp_path / 'elsewhere').iterdir())) == 2
    assert not (tmp_path / 'hub').exists() or not list((tmp_path / 'hub' / 'checkpoints').iterdir())


def test_files_that_are_there_already(checkpoints, expected, tmp_path):
    for name, path in zip(('classifier.ckpt', 'predictor.ckpt'), checkpoints, strict=True):
        (tmp_path / name).symlink_to(path)
    overlay = {'file': str(tmp_path / 'classifier.ckpt'), 'custom_load': True}
    model = timm.create_model('drnet_resnet50', pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.predictor.fc.weight, expected['predictor.fc.weight'])


@pytest.mark.parametrize('resolutions', [(224, 168), (224, 192, 168, 112)])
def test_other_numbers_of_resolutions_are_refused(create, resolutions):
    with pytest.raises(ValueError, match='norms for 3 resolutions, but the model has .*Give the arguments'):
        create(resolutions=resolutions)


def test_other_backbone_is_refused(create):
    with pytest.raises(ValueError, match='release is a ResNet-50 with a residual predictor'):
        create(backbone='resnet101')
