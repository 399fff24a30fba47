"""Plain timm weights in a DRNet: every branch starts as the plain model."""

import pytest
import timm
import torch
import torch.nn.functional as F

import timm_drnet
from timm_drnet.hub.checkpoints import checkpoint_filter_fn, load_weights

SMALL = {'channels': (16, 24, 32, 40)}


@pytest.fixture
def plain(shake):
    """A plain ResNet-18 with seven classes."""
    return shake(timm.create_model('resnet18', num_classes=7, **SMALL)).eval()


@pytest.fixture
def weights(plain, tmp_path):
    """Its weights in a file."""
    path = tmp_path / 'plain.pth'
    torch.save({'state_dict': plain.state_dict()}, path)
    return str(path)


@pytest.fixture
def load(weights):
    """Function that creates a DRNet from the file as timm's scripts do."""

    def load(in_file, **kwargs):
        overlay = {'file': weights, 'num_classes': in_file}
        return timm.create_model(
            'drnet', backbone='resnet18', pretrained=True, resolutions=(64, 48, 32), pretrained_cfg_overlay=overlay,
            **SMALL, **kwargs).eval()

    return load


def small(x, size):
    return F.interpolate(x, (size, size), mode='bilinear', align_corners=False)


@pytest.mark.parametrize('resolution_aware_norm', [True, False])
def test_every_branch_starts_as_the_plain_model(make_tiny, plain, images, resolution_aware_norm):
    model = make_tiny('resnet18', num_classes=7, resolution_aware_norm=resolution_aware_norm, **SMALL).eval()
    predictor = {key: value.clone() for key, value in model.predictor.state_dict().items()}
    model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
    x = images(3)
    for j, r in enumerate(model.resolutions):
        torch.testing.assert_close(model.forward_at(x, j), plain(small(x, r)))
    assert torch.equal(model(x), model.forward_at(x, 0))
    assert model.predict_resolution(x).tolist() == [0, 0, 0]
    for key, value in model.predictor.state_dict().items():
        assert torch.equal(value, predictor[key]) != key.startswith('classifier.')


def test_branches_do_not_share_the_norms_they_start_from(make_tiny, plain):
    model = make_tiny('resnet18', num_classes=7, **SMALL)
    model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
    with torch.no_grad():
        model.backbone.bn1.norms[0].weight.zero_()
    assert torch.equal(model.backbone.bn1.norms[1].weight, plain.bn1.weight)


def test_state_of_a_drnet_passes_unchanged(tiny):
    state = tiny.state_dict()
    assert checkpoint_filter_fn(state, tiny) is state


def test_norms_with_activation_are_converted(make_tiny, shake, images):
    plain = shake(timm.create_model('test_efficientnet', num_classes=5)).eval()
    model = make_tiny('test_efficientnet').eval()
    model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
    torch.testing.assert_close(model.forward_at(images(2), 2), plain(small(images(2), 32)))


def test_load_through_timm(load, plain, images):
    model, x = load(in_file=7), images(3)
    for j, r in enumerate(model.resolutions):
        torch.testing.assert_close(model.forward_at(x, j), plain(small(x, r)))


@pytest.mark.parametrize('num_classes', [7, 11, 0])
def test_load_through_timm_with_a_new_head(load, plain, images, num_classes):
    model, x = load(in_file=-1, num_classes=num_classes), images(3)  # as train.py --pretrained-path does
    assert model.num_classes == num_classes
    if num_classes == 7:
        assert not torch.equal(model.backbone.fc.weight, plain.fc.weight)
    model.reset_classifier(0)
    plain.reset_classifier(0)
    for j, r in enumerate(model.resolutions):
        torch.testing.assert_close(model.forward_at(x, j), plain(small(x, r)))


def test_load_through_timm_with_one_channel(load, plain):
    model = load(in_file=7, in_chans=1)
    torch.testing.assert_close(model.backbone.conv1.weight, plain.conv1.weight.sum(dim=1, keepdim=True))
    assert model.predictor.conv1.weight.shape[1] == 1
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_untrained_predictor_is_told_once(make_tiny, plain, caplog):
    for stage, expected in (('pretrain', 0), ('joint', 1)):  # the pretrain stage has no use for the predictor
        model = make_tiny('resnet18', num_classes=7, stage=stage, **SMALL)
        caplog.clear()
        model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
        assert caplog.text.count('the resolution predictor is untrained: it chooses 64 px for every image') == expected


def test_started_predictor_learns(make_tiny, plain, images):
    model = make_tiny('resnet18', num_classes=7, **SMALL).train()
    model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
    torch.manual_seed(0)
    for _ in range(2):
        timm_drnet.training_loss(model, F.cross_entropy, model(images(8)), torch.arange(8) % 7).backward()
        with torch.no_grad():
            for parameter in model.predictor.parameters():
                parameter -= 0.1 * parameter.grad
    assert all(parameter.grad.abs().max() > 0 for parameter in model.predictor.parameters())


@pytest.mark.parametrize(('saved', 'wanted'), [
    ({}, {'resolutions': (64, 48)}), ({}, {'resolutions': (96, 64, 48, 32)}), ({}, {'resolution_aware_norm': False}),
    ({'resolution_aware_norm': False}, {})])
def test_weights_for_another_number_of_resolutions_are_refused(make_tiny, saved, wanted):
    state, model = make_tiny(**saved).state_dict(), make_tiny(**wanted)
    sets = len(model.resolutions) if model.args.resolution_aware_norm else 1
    expected = f'norms for {1 if saved else 3} resolutions, but the model has {sets} sets.*resolutions=.*Give the arg'
    with pytest.raises(ValueError, match=expected):
        checkpoint_filter_fn(state, model)


def test_weights_of_a_trained_cascade_have_no_predictor(make_tiny, shake):
    with pytest.raises(ValueError, match=r"no predictor.*created with router='predictor'\. Give router='cascade'"):
        checkpoint_filter_fn(shake(make_tiny(router='cascade')).state_dict(), make_tiny())


@pytest.mark.parametrize(('saved', 'wanted'), [
    ((64, 48), {'router': 'cascade'}), ((64, 48), {'router': 'cascade', 'resolutions': (64,)}),
    ((64,), {'router': 'cascade', 'resolutions': (64, 32)}), ((64, 48), {'stage': 'pretrain'}),
    ((64, 48, 32), {'stage': 'pretrain'})])
def test_cascade_of_untrained_norms_starts_other_drnets_as_its_backbone_would(
        make_tiny, plain, images, saved, wanted):
    start = make_tiny('resnet18', num_classes=7, router='cascade', resolutions=saved, **SMALL)
    start.load_state_dict(checkpoint_filter_fn(plain.state_dict(), start))
    model = make_tiny('resnet18', num_classes=7, seed=1, **wanted, **SMALL).eval()
    load_weights(model, start.state_dict())
    x = images(2)
    for j, size in enumerate(model.resolutions):
        torch.testing.assert_close(model.forward_at(x, j), plain(small(x, size)))


def test_wrong_weights_are_refused(make_tiny, plain):
    model = make_tiny(num_classes=7)
    with pytest.raises(RuntimeError, match='Error.s. in loading state_dict'):
        model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))


def test_cascade_of_what_was_trained_beside_a_predictor(make_tiny, shake, images):
    """The pretrain stage leaves a predictor that a cascade has no use for."""
    trained = shake(make_tiny(stage='pretrain')).eval()
    cascade = make_tiny(router='cascade', seed=1).eval()
    load_weights(cascade, trained.state_dict())
    x = images(3)
    for j in range(3):
        assert torch.equal(cascade.forward_at(x, j), trained.forward_at(x, j))
