"""The analysis of choices, held against numbers that were worked out by hand and against trying everything."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import timm_drnet
from timm_drnet.analysis import choices as module
from timm_drnet.analysis.calibration import calibrate
from timm_drnet.analysis.choices import Outcomes, analyze, score_answers
from timm_drnet.core.arguments import DRNetArgs
from timm_drnet.cost.costs import set_cost_weight
from timm_drnet.cost.flops import CostRow
from timm_drnet.evaluate import curve, validation
from timm_drnet.evaluate.answers import Answers, collect_answers

SIDES_BY_HAND, BACKBONE, PREDICTOR = (96, 64, 32), (100, 60, 20), 5  # GFLOPs
GIGA = 10 ** 9

# Right at the large, the middle and the small resolution; chosen; probability of what was chosen; label.
IMAGES = (
    ((1, 1, 1), 2, 0.95, 0),
    ((1, 1, 1), 0, 0.95, 0),
    ((1, 1, 0), 2, 0.45, 0),
    ((1, 0, 0), 0, 0.85, 0),
    ((0, 1, 0), 0, 0.45, 2),
    ((0, 0, 0), 2, 0.55, 2),
    ((0, 0, 0), 1, 0.45, 2),
    ((1, 0, 1), 1, 0.25, 2),  # with a dial, the choice need not be the most probable
    ((0, 1, 0), 1, 0.75, 2),
    ((1, 1, 0), 0, 0.95, 3),
)


@pytest.fixture
def model(monkeypatch):
    """What the arithmetic asks of a model, with costs that are easy to add up."""
    rows = tuple(
        CostRow(side, flops * GIGA, PREDICTOR * GIGA, (flops + PREDICTOR) * GIGA, flops / BACKBONE[0])
        for side, flops in zip(SIDES_BY_HAND, BACKBONE, strict=True))
    for user in (module, validation, curve):
        monkeypatch.setattr(user, 'cost_table', lambda model: rows)
    # The dial favours the middle size as much as image 7 needs.
    return SimpleNamespace(
        args=DRNetArgs(resolutions=SIDES_BY_HAND), resolutions=SIDES_BY_HAND, num_classes=4, prices=(0, -0.45, 0))


def make_answers(images=IMAGES):
    """Answers of a model that is wrong by taking the next class."""
    right = torch.tensor([image[0] for image in images]).bool()
    choices = torch.tensor([image[1] for image in images])
    labels = torch.tensor([image[3] for image in images])
    chosen = torch.tensor([image[2] for image in images], dtype=torch.float64)
    probabilities = ((1 - chosen) / 2)[:, None].repeat(1, 3).scatter(1, choices[:, None], chosen[:, None])
    first = torch.where(right, labels[:, None], (labels[:, None] + 1) % 4)
    classes = (first[..., None] + torch.arange(4)) % 4
    return Answers(labels, probabilities.log().float(), classes, torch.full(classes.shape, 0.25))


def test_oracle(model):
    oracle = score_answers(model, make_answers()).validation.oracle
    assert oracle.images == (1, 4, 3)
    assert oracle.none_right == 2
    assert oracle.top1 == pytest.approx(80)
    assert oracle.gflops == pytest.approx((1 * 100 + 4 * 60 + (3 + 2) * 20) / 10)
    assert oracle.fraction == pytest.approx(0.44)
    assert oracle.gflops_with_router == pytest.approx(44 + 5)
    assert oracle.fraction_with_router == pytest.approx(0.49)


@pytest.mark.parametrize('seed', range(5))
def test_oracle_is_the_best_of_all_ways_to_choose(model, seed):
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(5, 3, generator=generator) < 0.4
    answers = make_answers([(tuple(row), 0, 0.5, 0) for row in right.tolist()])
    oracle = score_answers(model, answers).validation.oracle
    ways = [
        (sum(bool(right[i, j]) for i, j in enumerate(way)), -sum(BACKBONE[j] for j in way))
        for way in itertools.product(range(3), repeat=5)]
    hits, minus_cost = max(ways)  # the most accurate, and of these the cheapest
    assert oracle.top1 == pytest.approx(100 * hits / 5)
    assert oracle.gflops == pytest.approx(-minus_cost / 5)


def test_what_the_model_does_beside_the_oracle(model):
    found = score_answers(model, make_answers()).validation
    assert found.images == 10
    assert found.dynamic.top1 == pytest.approx(50)
    assert found.dynamic.gflops == pytest.approx((4 * 100 + 3 * 60 + 3 * 20) / 10 + 5)
    assert [row.images for row in found.resolutions] == [4, 3, 3]
    assert [row.held.top1 for row in found.resolutions] == [pytest.approx(value) for value in (60, 60, 30)]
    assert [row.held.gflops for row in found.resolutions] == [100, 60, 20]
    assert [row.routed.top1 for row in found.resolutions] == [
        pytest.approx(100 * value) for value in (3 / 4, 1 / 3, 1 / 3)]
    assert found.random.mean.gflops == pytest.approx(64)
    assert found == score_answers(model, make_answers(), seed=0).validation
    assert found.random.mean.top1 == pytest.approx(0.4 * 60 + 0.3 * 60 + 0.3 * 30)
    assert found.verdict.lots.top1 == pytest.approx(found.random.mean.top1)
    assert found.verdict.static.top1 == 60  # what 60 GFLOPs buy, no more being to be had
    assert [point.gflops for point in found.static_line] == [20, 60]
    assert found != score_answers(model, make_answers(), seed=1).validation


def test_choices_against_the_oracle(model):
    choices = score_answers(model, make_answers()).choices
    assert choices.confusion == (
        (1, 0, 0),  # image 3
        (2, 1, 1),  # 4 and 9, 8, 2
        (1, 1, 1),  # 1, 7, 0
        (0, 1, 1),  # 6, 5
    )
    assert choices.agreement == pytest.approx(0.4)  # 0, 3, 5, 8
    assert choices.agreement_by_chance == pytest.approx(0.4 * 0.1 + 0.3 * 0.4 + 0.3 * 0.5)
    assert choices.right_when_possible == pytest.approx(5 / 8)
    assert choices.outcomes == Outcomes(
        just_right=3, needlessly_large=2, too_small=2, only_smaller_right=1, none_right=2)


def test_agreement_by_chance_is_that_of_all_ways_to_deal(model):
    images = IMAGES[2:8]
    spent = [1, 0, 1, 2, 2, 2]  # by hand, from the table above
    deals = list(itertools.permutations(image[1] for image in images))
    agreements = [sum(a == b for a, b in zip(deal, spent, strict=True)) / 6 for deal in deals]
    found = score_answers(model, make_answers(images)).choices.agreement_by_chance
    assert found == pytest.approx(sum(agreements) / len(agreements))


def test_images(model):
    images = score_answers(model, make_answers()).images
    assert [image.oracle for image in images] == [2, 2, 1, 0, 1, None, None, 2, 1, 1]
    assert [image.choice for image in images] == [image[1] for image in IMAGES]
    assert [image.outcome for image in images] == [
        'just_right', 'needlessly_large', 'too_small', 'just_right', 'only_smaller_right', 'none_right', 'none_right',
        'too_small', 'just_right', 'needlessly_large']
    assert [image.label for image in images] == [0, 0, 0, 0, 2, 2, 2, 2, 2, 3]
    assert images[7].right == (True, False, True)
    assert images[7].predictions == (2, 3, 2)
    assert images[7].probabilities == pytest.approx((0.375, 0.25, 0.375))


def test_classes(model):
    classes = score_answers(model, make_answers()).classes
    assert [(one.label, one.images) for one in classes] == [(0, 4), (2, 5), (3, 1)]  # class 1 has no image
    assert [one.top1 for one in classes] == [pytest.approx(value) for value in (75, 20, 100)]
    assert [one.held_top1 for one in classes] == [pytest.approx(value) for value in (100, 20, 100)]
    assert [one.shares for one in classes] == [
        pytest.approx(value) for value in ((0.5, 0, 0.5), (0.2, 0.6, 0.2), (1, 0, 0))]
    assert [one.gflops for one in classes] == [
        pytest.approx(value + 5) for value in ((2 * 100 + 2 * 20) / 4, (100 + 3 * 60 + 20) / 5, 100)]


def test_probability_of_the_choice_is_held_against_agreement(model):
    calibration = score_answers(model, make_answers()).calibration
    bins = {round(one.low, 1): (one.count, one.probability, one.frequency) for one in calibration.bins if one.count}
    assert bins == {
        0.2: (1, pytest.approx(0.25), 0), 0.4: (3, pytest.approx(0.45), 0), 0.5: (1, pytest.approx(0.55), 1),
        0.7: (1, pytest.approx(0.75), 1), 0.8: (1, pytest.approx(0.85), 1),
        0.9: (3, pytest.approx(0.95), pytest.approx(1 / 3))}
    assert calibration.ece == pytest.approx(
        0.1 * 0.25 + 0.3 * 0.45 + 0.1 * 0.45 + 0.1 * 0.25 + 0.1 * 0.15 + 0.3 * (0.95 - 1 / 3))


def test_no_image_is_right_anywhere(model):
    found = score_answers(model, make_answers([((0, 0, 0), 1, 0.5, 1)] * 3))
    assert found.choices.right_when_possible is None
    assert found.validation.oracle.top1 == 0
    assert found.validation.oracle.gflops == 20
    assert found.choices.confusion == ((0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 3, 0))


def test_bins_end_with_their_upper_edge():
    probabilities = torch.tensor([0.0, 0.1, 0.3, 0.7, 0.700001, 0.9, 1.0], dtype=torch.float64)
    found = calibrate(probabilities, torch.tensor([False, True, True, False, True, True, True]))
    assert [one.count for one in found.bins] == [2, 0, 1, 0, 0, 0, 1, 1, 1, 1]
    assert [(one.low, one.high) for one in found.bins][6:8] == [(0.6, 0.7), (0.7, 0.8)]
    assert found.bins[0].probability == pytest.approx(0.05)
    assert found.bins[0].frequency == pytest.approx(0.5)
    assert (found.bins[1].probability, found.bins[1].frequency) == (None, None)


def test_ece_of_a_calibrated_and_of_a_boastful_predictor():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(20000, generator=generator, dtype=torch.float64)
    came_true = torch.rand(20000, generator=generator, dtype=torch.float64) < probabilities
    assert calibrate(probabilities, came_true).ece < 0.02
    assert calibrate(torch.full((8,), 0.875, dtype=torch.float64), torch.arange(8) < 2).ece == pytest.approx(0.625)


# From here on, a real model.

SIDES = (64, 48, 32)
NUMBER = 11


def small(x, side):
    return nn.functional.interpolate(x, (side, side), mode='bilinear', align_corners=False)


@pytest.fixture
def pictures(images):
    """Images from pale to bright, (11, 3, 64, 64)."""
    return images(NUMBER) * torch.linspace(0.1, 4, NUMBER)[:, None, None, None]


@pytest.fixture
def drnet(tiny, pictures, spread_choices):
    """A DRNet that chooses every resolution, and whose answers depend on it."""
    x = pictures
    spread_choices(tiny, x)
    with torch.no_grad():
        tiny.get_classifier().bias -= torch.cat([tiny.forward_at(x, j) for j in range(3)]).mean(dim=0)
    return tiny


@pytest.fixture
def batches(pictures):
    """Eleven images with labels, in batches."""
    return list(zip(pictures.split(4), (torch.arange(NUMBER) % 5).split(4), strict=True))


def test_answers_are_those_of_one_image_at_a_time(drnet, batches, pictures, make_plain):
    found, images = collect_answers(drnet, batches), analyze(drnet, batches).images
    plain = [make_plain(drnet, j) for j in range(3)]
    assert len(set(map(tuple, found.classes[..., 0].tolist()))) >= 3, 'the model of this test must answer by resolution'
    for i, x in enumerate(pictures):
        with torch.no_grad():
            logits = [plain[j](small(x[None], side))[0].tolist() for j, side in enumerate(SIDES)]
            scores = drnet.predictor(small(x[None], drnet.args.predictor_size))[0].tolist()
        powers = [math.exp(score) for score in scores]
        assert found.labels[i] == i % 5
        assert images[i].choice == scores.index(max(scores))
        assert images[i].probabilities == pytest.approx([power / sum(powers) for power in powers], rel=1e-4)
        assert list(images[i].predictions) == [row.index(max(row)) for row in logits]
        assert found.hits[i, :, 0].tolist() == [row.index(max(row)) == i % 5 for row in logits]
    assert found.hits[..., 1].all()  # five of five classes
    assert sorted({image.choice for image in images}) == [0, 1, 2]


def test_numbers_are_those_of_validate(drnet, batches):
    found, expected = analyze(drnet, batches, seed=3).validation, validation.validate(drnet, batches, seed=3)
    assert found == expected
    assert 0 < found.dynamic.top1 < 100


def test_costs_are_those_of_the_model(drnet, batches):
    found = analyze(drnet, batches)
    rows = timm_drnet.cost_table(drnet)
    spent = sum(rows[2 if image.oracle is None else image.oracle].backbone_flops for image in found.images) / NUMBER
    assert found.validation.oracle.gflops == pytest.approx(spent / 1e9)
    assert found.validation.oracle.gflops_with_router == pytest.approx((spent + rows[0].predictor_flops) / 1e9)
    assert found.validation.oracle.fraction == pytest.approx(spent / rows[0].backbone_flops)


def test_dial_moves_the_choices_and_not_the_probabilities(drnet, batches):
    before = analyze(drnet, batches)
    set_cost_weight(drnet, 1e3)
    after = analyze(drnet, batches)
    assert {image.choice for image in after.images} == {2}
    assert [image.probabilities for image in after.images] == [image.probabilities for image in before.images]
    assert after.curve == before.curve


def test_equal_logits_are_read_alike(drnet, batches, monkeypatch):
    monkeypatch.setattr(drnet, 'forward_at', lambda x, j: torch.zeros(len(x), 5))
    for image in analyze(drnet, batches).images:
        assert image.right == tuple(prediction == image.label for prediction in image.predictions)


def test_cascade(make_cascade, images):
    model, x = make_cascade(), images(30)
    with torch.no_grad():
        choices = model.predict_resolution(x).tolist()
        logits = [model.forward_at(x, j) for j in range(3)]
    target = torch.where(torch.arange(30) % 3 > 0, logits[0].argmax(dim=1), 1)
    found = analyze(model, [(x, target)])
    assert [image.choice for image in found.images] == choices
    for i, image in enumerate(found.images):
        assert image.probabilities == pytest.approx([float(one[i].softmax(dim=0).max()) for one in logits], rel=1e-4)
    # Its confidence is held against what is right.
    sure = [image.probabilities[image.choice] for image in found.images]
    right = [image.right[image.choice] for image in found.images]
    assert found.calibration == calibrate(torch.tensor(sure).double(), torch.tensor(right))
    large, middle, small = (row.backbone_flops for row in timm_drnet.cost_table(model))
    paid = [large + middle + small, middle + small, small]
    spent = sum(paid[2 if image.oracle is None else image.oracle] for image in found.images)
    assert found.validation.oracle.gflops_with_router == pytest.approx(spent / 30 / 1e9)
    mine = [choices[i] for i in range(30) if target[i] == 1]
    one = next(one for one in found.classes if one.label == 1)
    assert one.gflops == pytest.approx(sum(paid[j] for j in mine) / len(mine) / 1e9)


def test_amp_reaches_predictor_and_backbone(drnet, batches, monkeypatch):
    timm_drnet.cost_table(drnet)  # which runs the predictor as well
    seen = []
    drnet.predictor.register_forward_pre_hook(
        lambda module, args: seen.append(torch.is_autocast_enabled('cpu')))
    forward_at = drnet.forward_at

    def spy(x, j):
        seen.append(torch.is_autocast_enabled('cpu'))
        return forward_at(x, j)

    monkeypatch.setattr(drnet, 'forward_at', spy)
    analyze(drnet, batches[:1])
    assert set(seen) == {False}
    seen.clear()
    analyze(drnet, batches[:1], amp=True)
    assert set(seen) == {True}


def test_pretrain_stage_is_refused(make_tiny, batches):
    with pytest.raises(ValueError, match=r'pretrain stage, in which the predictor is not in use.*joint'):
        analyze(make_tiny(stage='pretrain'), batches)


def test_model_without_classifier(make_tiny, batches):
    with pytest.raises(ValueError, match='num_classes=0'):
        analyze(make_tiny(num_classes=0), batches)


@pytest.mark.parametrize('wrong', [5, -1])
def test_label_that_is_no_class(drnet, batches, wrong):
    batches[1][1][2] = wrong
    with pytest.raises(ValueError, match=rf'from .*{wrong}.* 5 classes'):
        analyze(drnet, batches)


def test_damaged_weights(drnet, batches):
    bias = drnet.get_classifier().bias
    kept = bias[3].item()
    bias.data[3] = torch.nan
    with pytest.raises(ValueError, match='logits that are not finite'):
        analyze(drnet, batches)
    bias.data[3] = kept
    drnet.predictor.classifier.bias.data[0] = torch.inf
    with pytest.raises(ValueError, match='predictor gives scores that are not finite'):
        analyze(drnet, batches)


def test_nothing_to_analyze(drnet):
    with pytest.raises(ValueError, match='no images'):
        analyze(drnet, [])
