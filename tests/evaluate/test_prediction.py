"""Prediction, held against the model itself and arithmetic by hand."""

import dataclasses

import pytest
import torch
from PIL import Image
from torch import nn

import timm_drnet
from timm_drnet.data.reading import image_loader
from timm_drnet.evaluate.prediction import format_flops, predict_images

RESOLUTIONS = (64, 48, 32)
LABELS = tuple('abcde')
GREYS = (250, 5, 120, 10, 240, 130, 0)
CHOICES = (2, 0, 1, 0, 2, 1, 0)
"""Of the greys: dark images choose the largest resolution, bright ones the smallest."""


@torch.no_grad()
def make_model(stage='joint', num_classes=5, in_chans=3):
    """A model whose choice can be foreseen and whose answer depends on image and resolution."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'resnet10t', resolutions=RESOLUTIONS, num_classes=num_classes, in_chans=in_chans,
        predictor='inverted_residual', stage=stage)
    brightness = nn.Linear(in_chans, 3)
    brightness.weight.copy_(torch.tensor([[-1.0], [0.0], [1.0]]).expand(3, in_chans) / in_chans)
    brightness.bias.copy_(torch.tensor([-0.7, 0.0, -0.7]))
    model.predictor = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), brightness)
    for norm in model.backbone.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight, 1.0, 0.5)
    if num_classes:
        nn.init.normal_(model.backbone.fc.weight, std=3)
    return model.eval()


@pytest.fixture
def photographs(tmp_path):
    paths = []
    for i, grey in enumerate(GREYS):
        paths.append(tmp_path / f'{i}.png')
        Image.new('RGB', (50 + i, 70), (grey, grey, grey)).save(paths[-1])
    return paths


@pytest.mark.parametrize('batch_size', [1, 3, 32])
def test_predictions_are_the_model_s(photographs, batch_size):
    model = make_model()
    x = torch.stack(list(map(image_loader(model), photographs)))
    with torch.no_grad():
        best = model(x).softmax(dim=1).topk(2)
    result = predict_images(model, photographs, LABELS, topk=2, batch_size=batch_size)
    assert [image.path for image in result.images] == photographs
    assert [image.resolution for image in result.images] == [RESOLUTIONS[j] for j in CHOICES]
    assert [image.labels for image in result.images] == [tuple(LABELS[i] for i in row) for row in best.indices]
    for image, expected in zip(result.images, best.values.tolist(), strict=True):
        assert image.probabilities == pytest.approx(expected, abs=1e-5)
    assert len({image.probabilities for image in result.images}) > 3  # or the order would not have been tested


def test_costs(photographs):
    model = make_model()
    rows = timm_drnet.cost_table(model)
    result = predict_images(model, photographs)
    assert [image.flops for image in result.images] == [rows[j].total_flops for j in CHOICES]
    assert result.costs == {row.resolution: row.total_flops for row in rows}
    assert result.counts == {64: 3, 48: 2, 32: 2}
    assert result.flops == sum(n * row.total_flops for n, row in zip((3, 2, 2), rows, strict=True))
    assert result.largest_flops == 7 * rows[0].backbone_flops


def test_pretrain_stage_runs_no_predictor(photographs):
    model = make_model(stage='pretrain')
    result = predict_images(model, photographs)
    assert result.counts == {64: 7, 48: 0, 32: 0}
    assert result.flops == result.largest_flops == 7 * timm_drnet.cost_table(model)[0].backbone_flops


def test_cascade_pays_for_every_rung_and_runs_each_once(make_cascade, tmp_path):
    model, paths = make_cascade(), []
    for i in range(9):
        pixels = torch.rand(5, 5, 3, generator=torch.Generator().manual_seed(i)) * (i + 1) * 28
        paths.append(tmp_path / f'{i}.png')
        Image.fromarray(pixels.byte().numpy()).resize((70, 70)).save(paths[-1])
    x = torch.stack(list(map(image_loader(model), paths)))
    with torch.no_grad():
        sure = [model.forward_at(x, j).softmax(dim=1).amax(dim=1).sort().values for j in range(3)]
        model.args = dataclasses.replace(
            model.args, thresholds=(float(sure[1][3:5].mean()), float(sure[2][5:7].mean())))
        choices = model.predict_resolution(x).tolist()
    assert len(set(choices)) > 1
    large, middle, small = (row.backbone_flops for row in timm_drnet.cost_table(model))
    paid = (large + middle + small, middle + small, small)
    ran = []
    model.get_classifier().register_forward_pre_hook(lambda module, args: ran.append(len(args[0])))
    result = predict_images(model, paths)
    assert [image.resolution for image in result.images] == [RESOLUTIONS[j] for j in choices]
    assert [image.flops for image in result.images] == [paid[j] for j in choices]
    assert ran == [n for n in (9, 9 - choices.count(2), choices.count(0)) if n]


def test_unreadable_files_are_listed_and_do_not_disturb_the_others(photographs, tmp_path):
    broken = [tmp_path / 'x.png', tmp_path / 'gone.png']
    broken[0].write_bytes(b'no image')
    mixed = [broken[0], *photographs[:2], broken[1], *photographs[2:]]
    result = predict_images(make_model(), mixed, batch_size=2)
    assert result.images == predict_images(make_model(), photographs, batch_size=2).images
    assert [file.path for file in result.unreadable] == broken
    assert 'not an image' in result.unreadable[0].reason


def test_nothing_readable(tmp_path):
    result = predict_images(make_model(), [tmp_path / 'gone.png'])
    assert (result.images, result.flops, result.largest_flops) == ((), 0, 0)


def test_grey_model(photographs):
    result = predict_images(make_model(in_chans=1), photographs)
    assert [image.resolution for image in result.images] == [RESOLUTIONS[j] for j in CHOICES]


def test_model_stays_as_it_was(photographs):
    model = make_model().train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    predict_images(model, photographs)
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_topk_stops_at_the_number_of_classes(photographs):
    result = predict_images(make_model(), photographs[:1], LABELS, topk=9)
    assert sorted(result.images[0].labels) == sorted(LABELS)
    assert sum(result.images[0].probabilities) == pytest.approx(1)
    assert list(result.images[0].probabilities) == sorted(result.images[0].probabilities, reverse=True)


@pytest.mark.parametrize(('arguments', 'reason'), [
    ({'topk': 0}, 'topk 0'),
    ({'batch_size': 0}, 'batch_size 0'),
    ({'labels': 'abcd'}, '4 labels for a model of 5 classes'),
])
def test_bad_arguments(photographs, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        predict_images(make_model(), photographs, **arguments)


def test_model_without_classifier(photographs):
    with pytest.raises(ValueError, match='no classifier'):
        predict_images(make_model(num_classes=0), photographs)


def test_damaged_weights_are_noticed(photographs):
    model = make_model()
    nn.init.constant_(model.backbone.fc.bias, float('nan'))
    with pytest.raises(ValueError, match='not finite'):
        predict_images(model, photographs)
    assert not model.training


@pytest.mark.parametrize(('flops', 'like', 'text'), [
    (48_593_664, None, '48.6 MFLOPs'),
    (174_963_456, None, '175 MFLOPs'),
    (6_469_120, None, '6.47 MFLOPs'),
    (4_089_184_256, None, '4.09 GFLOPs'),
    (48_593_664, 4e9, '0.0486 GFLOPs'),
    (4_089_184_256, 48e6, '4089 MFLOPs'),
    (0, None, '0 MFLOPs'),
])
def test_format_flops(flops, like, text):
    assert format_flops(flops, like) == text
