"""Validation, held against one image at a time and arithmetic by hand."""

import dataclasses
import itertools
import statistics

import pytest
import torch
from torch import nn

import timm_drnet
from timm_drnet.evaluate.validation import validate

RESOLUTIONS = (64, 48, 32)
IMAGES = 13


def make_images():
    generator = torch.Generator().manual_seed(1)
    scale = torch.linspace(0.2, 3, IMAGES).view(-1, 1, 1, 1)
    return torch.randn(IMAGES, 3, 64, 64, generator=generator) * scale


@torch.no_grad()
def make_model(num_classes=7, stage='joint', **kwargs):
    """A model that gives different images different resolutions and classes, and a class that depends on both."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'resnet10t', resolutions=RESOLUTIONS, num_classes=num_classes, predictor='inverted_residual', stage=stage,
        **kwargs).eval()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias, 0.0, 0.3)
    if stage == 'joint':
        nn.init.normal_(model.predictor.classifier.weight)
        x = make_images()
        scores = model.predictor(nn.functional.interpolate(x, size=model.args.predictor_size, mode='bilinear'))
        model.predictor.classifier.bias -= scores.mean(dim=0)
        logits = torch.cat([model.forward_at(x, j) for j in range(len(RESOLUTIONS))])
        model.backbone.fc.bias -= logits.mean(dim=0)
    return model


def make_target(num_classes=7):
    return torch.arange(IMAGES) % num_classes


def in_batches(x, target, size):
    return list(zip(x.split(size), target.split(size), strict=True))


def percent(hits):
    return pytest.approx(100 * sum(hits) / len(hits))


@torch.no_grad()
def hits_by_hand(logits, label, k):
    """Whether a label is first, and whether fewer than k classes are before it."""
    before = sum(1 for value in logits.flatten().tolist() if value > logits.flatten()[label].item())
    return before == 0, before < k


@pytest.mark.parametrize(('num_classes', 'k'), [(7, 5), (3, 3)])
@pytest.mark.parametrize('batch_size', [1, 4, IMAGES])
def test_numbers_are_those_of_one_image_at_a_time(num_classes, k, batch_size):
    model, x, target = make_model(num_classes), make_images(), make_target(num_classes)
    table = timm_drnet.cost_table(model)
    with torch.no_grad():
        choices = [int(model.predictor(nn.functional.interpolate(
            image[None], size=model.args.predictor_size, mode='bilinear')).argmax()) for image in x]
        held = [
            [hits_by_hand(model.forward_at(image[None], j), label, k) for image, label in zip(x, target, strict=True)]
            for j in range(len(RESOLUTIONS))
        ]
    routed = [held[choice][i] for i, choice in enumerate(choices)]
    assert set(choices) == {0, 1, 2}, 'the model of this test must use all resolutions'
    assert len({tuple(one) for one in held}) > 1, 'the model of this test must answer by resolution'

    result = validate(model, in_batches(x, target, batch_size))

    assert (result.images, result.num_classes, result.k, result.stage) == (IMAGES, num_classes, k, 'joint')
    assert result.dynamic.top1 == percent([first for first, _ in routed])
    assert result.dynamic.top5 == percent([among for _, among in routed])
    gflops = sum(table[choice].total_flops for choice in choices) / IMAGES / 1e9
    assert result.dynamic.gflops == pytest.approx(gflops)
    assert result.dynamic.fraction == pytest.approx(gflops * 1e9 / table[0].backbone_flops)
    for j, row in enumerate(result.resolutions):
        mine = [i for i, choice in enumerate(choices) if choice == j]
        assert row.resolution == RESOLUTIONS[j]
        assert (row.images, row.share) == (len(mine), pytest.approx(len(mine) / IMAGES))
        assert row.routed.top1 == percent([held[j][i][0] for i in mine])
        assert row.routed.top5 == percent([held[j][i][1] for i in mine])
        assert row.routed.gflops == pytest.approx(table[j].total_flops / 1e9)
        assert row.held.top1 == percent([first for first, _ in held[j]])
        assert row.held.top5 == percent([among for _, among in held[j]])
        assert row.held.gflops == pytest.approx(table[j].backbone_flops / 1e9)
        assert row.held.fraction == pytest.approx(table[j].fraction)
    by_lot = sum(table[choice].backbone_flops for choice in choices) / IMAGES / 1e9
    assert result.random.mean.gflops == pytest.approx(by_lot)
    assert (result.router, result.routed) == ('predictor', True)
    needed = [max([j for j in range(3) if held[j][i][0]], default=None) for i in range(IMAGES)]
    assert result.oracle.top1 == percent([j is not None for j in needed])
    spent = sum(table[2 if j is None else j].backbone_flops for j in needed) / IMAGES
    assert result.oracle.gflops == pytest.approx(spent / 1e9)
    assert result.oracle.gflops_with_router == pytest.approx((spent + table[0].predictor_flops) / 1e9)
    assert {point.name for point in result.static_line} <= {'64 px', '48 px', '32 px'}
    assert result.verdict.lots.difference == pytest.approx(result.dynamic.top1 - result.random.mean.top1)
    assert result.verdict.lots.top1 == pytest.approx(result.random.mean.top1)


def answer_where(model, monkeypatch, right):
    """Let the model be right where ``right(x, j)`` says so; the label is in the corner of the image."""

    def forward_at(x, j):
        label = x[:, 0, 0, 0].long()
        answer = torch.where(right(x, j), label, (label + 1) % model.num_classes)
        return nn.functional.one_hot(answer, model.num_classes).float()

    monkeypatch.setattr(model, 'forward_at', forward_at)
    x, target = make_images(), make_target()
    x[:, 0, 0, 0] = target.float()
    return x, target


def test_random_router_has_exactly_the_measured_shares(monkeypatch):
    model = make_model()
    for only in range(3):
        x, target = answer_where(model, monkeypatch, lambda x, j, only=only: torch.full((len(x),), j == only))
        result = validate(model, in_batches(x, target, 4))
        share = result.resolutions[only].share
        assert 0 < share < 1
        assert result.random.mean.top1 == pytest.approx(100 * share)
        assert result.random.std.top1 == pytest.approx(0, abs=1e-9)


def test_lots_are_the_mean_over_all_ways_to_deal(monkeypatch):
    model = make_model()
    x, target = answer_where(model, monkeypatch, lambda x, j: (x[:, 0, 1, 1] > 0) | (model.predict_resolution(x) == j))
    x, target = x[:6], target[:6]
    result = validate(model, in_batches(x, target, 4))
    choices = model.predict_resolution(x).tolist()
    right = [[bool(x[i, 0, 1, 1] > 0) or choices[i] == j for j in range(3)] for i in range(6)]
    deals = [
        100 * sum(right[i][j] for i, j in enumerate(deal)) / 6 for deal in itertools.permutations(choices)]
    assert result.dynamic.top1 == 100  # the router is right about every image
    assert result.random.mean.top1 == pytest.approx(statistics.fmean(deals))
    assert result.random.std.top1 == pytest.approx(statistics.pstdev(deals))
    assert result.random.std.top1 > 0


def test_predictor_and_branches_run_once(monkeypatch):
    model, batches = make_model(), in_batches(make_images(), make_target(), 4)
    timm_drnet.cost_table(model)  # which runs them as well
    ran = []
    for name, module in (('predictor', model.predictor), ('backbone', model.get_classifier())):
        module.register_forward_pre_hook(lambda module, args, name=name: ran.extend([name] * len(args[0])))
    validate(model, batches)
    assert (ran.count('predictor'), ran.count('backbone')) == (IMAGES, 3 * IMAGES)


def test_cascade_pays_for_every_rung(make_cascade, images):
    model, x = make_cascade(), images(30)
    with torch.no_grad():
        choices = model.predict_resolution(x).tolist()
        target = torch.where(torch.arange(30) % 4 > 0, model.forward_at(x, 0).argmax(dim=1), 0)
        right = [[int(model.forward_at(x[i:i + 1], j).argmax() == target[i]) for j in range(3)] for i in range(30)]
    assert sorted(set(choices)) == [0, 1, 2]
    large, middle, small = (row.backbone_flops for row in timm_drnet.cost_table(model))
    paid = [large + middle + small, middle + small, small]
    result = validate(model, in_batches(x, target, 7))
    assert (result.router, result.images) == ('cascade', 30)
    assert [row.images for row in result.resolutions] == [choices.count(j) for j in range(3)]
    assert result.dynamic.top1 == percent([right[i][j] for i, j in enumerate(choices)])
    assert result.dynamic.gflops == pytest.approx(sum(paid[j] for j in choices) / 30 / 1e9)
    assert [row.routed.gflops for row in result.resolutions] == [pytest.approx(flops / 1e9) for flops in paid]
    assert [row.held.gflops for row in result.resolutions] == [
        pytest.approx(flops / 1e9) for flops in (large, middle, small)]
    assert result.random.mean.gflops == pytest.approx(result.dynamic.gflops)
    assert result.oracle.gflops_with_router > result.oracle.gflops
    model.args = dataclasses.replace(model.args, thresholds=(None, None))
    result = validate(model, in_batches(x, target, 7))
    assert result.dynamic == result.resolutions[0].held
    assert result.verdict.sentence == 'The router does not pay: all images take 64 px, which needs no router.'


def test_pretrain_stage_runs_all_at_the_largest_without_predictor():
    model, x, target = make_model(stage='pretrain'), make_images(), make_target()
    result = validate(model, in_batches(x, target, 5))
    assert result.stage == 'pretrain'
    assert [row.images for row in result.resolutions] == [IMAGES, 0, 0]
    assert result.dynamic.gflops == timm_drnet.cost_table(model)[0].backbone_flops / 1e9
    assert result.dynamic == result.resolutions[0].routed == result.resolutions[0].held == result.random.mean
    assert [row.routed for row in result.resolutions[1:]] == [None, None]
    assert (result.routed, result.verdict) == (False, None)
    assert len({row.held for row in result.resolutions}) == 3


def test_amp_and_channels_last_reach_the_model():
    model, batches = make_model(), in_batches(make_images(), make_target(), 4)
    timm_drnet.cost_table(model)  # which runs them as well
    seen = []
    for module in (model.predictor.conv_stem, model.backbone.conv1[0]):
        module.register_forward_pre_hook(lambda module, args: seen.append(
            (torch.is_autocast_enabled('cpu'), args[0].is_contiguous(memory_format=torch.channels_last))))
    validate(model, batches[:1])
    validate(model, batches[:1], amp=True, channels_last=True)
    assert seen == [(False, False)] * 4 + [(True, True)] * 4


@pytest.mark.parametrize('wrong', [7, -1])
def test_label_that_is_no_class(wrong):
    target = make_target()
    target[5] = wrong
    with pytest.raises(ValueError, match=rf'from .*{wrong}.* 7 classes'):
        validate(make_model(), in_batches(make_images(), target, 4))


def test_logits_that_are_not_finite():
    model = make_model()
    model.backbone.fc.bias.data[3] = torch.nan
    with pytest.raises(ValueError, match='not finite'):
        validate(model, in_batches(make_images(), make_target(), 4))


def test_nothing_to_measure():
    with pytest.raises(ValueError, match='no images'):
        validate(make_model(), [])
    with pytest.raises(ValueError, match='num_classes=0'):
        validate(timm_drnet.create_drnet('resnet10t', resolutions=RESOLUTIONS, num_classes=0), [])
