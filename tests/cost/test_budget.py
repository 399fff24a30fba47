"""The dial: the choice it makes, the weight it finds, and that it stays with the model."""

import itertools
import math
from dataclasses import replace

import pytest
import timm
import torch

import timm_drnet
from timm_drnet.cost.costs import Costs, set_cost_weight
from timm_drnet.cost.dial import budget_curve, find_cost_weight, setting
from timm_drnet.cost.latency import latency_table
from timm_drnet.deploy.export import export_model
from timm_drnet.deploy.priced_predictor import priced_predictor
from timm_drnet.evaluate.budgets import find_budget
from timm_drnet.hub.publishing import save_folder

COSTS = Costs('GFLOPs', (4.0, 2.5, 1.0), 0.3)


@pytest.fixture
def scores():
    """Of a predictor that tells 500 images apart."""
    return 2 * torch.randn(500, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model(tiny, spread_choices, images):
    """A model whose predictor is of three minds, and images."""
    x = images(60, size=64)
    spread_choices(tiny, x[:6])
    return tiny, x


def average(scores, weight, costs=COSTS):
    """Average cost, image by image, by the definition: argmax of log p_j - w * C_j / C_max."""
    total = 0.0
    for row in scores.double().softmax(dim=1).tolist():
        values = [math.log(p) - weight * c / max(costs.backbone) for p, c in zip(row, costs.backbone, strict=True)]
        total += costs.backbone[values.index(max(values))] + costs.predictor
    return total / len(scores)


@pytest.mark.parametrize('target', [1.5, 2.0, 2.5, 3.0, 3.5, 4.1])
def test_weight_meets_the_target(scores, target):
    weight = find_cost_weight(scores, COSTS, target)
    assert average(scores, weight) == pytest.approx(target, rel=0.01)
    # No weight comes nearer than half of the largest step, one of 500 images from the first to the last candidate.
    assert abs(average(scores, weight) - target) <= 3 / 500 / 2 + 1e-9


def test_weight_lies_in_the_middle_of_its_step():
    # The first image moves to the second candidate at w = 1 / (1 - 0.5) = 2, the second image at 3 / 0.5 = 6.
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    costs = Costs('GFLOPs', (2.0, 1.0), 0.0)
    assert find_cost_weight(scores, costs, 1.5) == pytest.approx(4)
    assert find_cost_weight(scores, costs, 2.0) == 0  # as trained, and nothing says otherwise
    assert find_cost_weight(scores, costs, 1.0) == pytest.approx(7)
    assert find_cost_weight(-scores, costs, 2.0) == pytest.approx(-7)  # more expensive than as trained
    assert find_cost_weight(-scores, costs, 1.0) == 0


def test_costs_need_not_fall_with_the_resolution(scores):
    """A clock may say that a smaller resolution takes longer, or as long."""
    for backbone in ((3.0, 3.2, 1.0), (3.0, 1.0, 1.0), (1.0, 2.0, 3.0)):
        costs = Costs('ms', backbone, 0.5)
        weight = find_cost_weight(scores, costs, 2.4)
        assert average(scores, weight, costs) == pytest.approx(2.4, rel=0.01)


@pytest.mark.parametrize(('scores', 'target', 'told'), [
    ([[1.0, 0, 0]] * 9, 2.0, 'the nearest averages are 4.3 and 1.3, and '),  # all images move at once
    ([[1.0, 0, 0], [0, 1.0, 0]], 9.0, 'resolutions cost from 4.3 to 1.3'),
    ([[1.0, 0, 0], [0, 1.0, 0]], 0.5, 'resolutions cost from 4.3 to 1.3'),
])
def test_target_out_of_reach(scores, target, told):
    with pytest.raises(ValueError, match=f'Invalid target {target:g} GFLOPs: on these {len(scores)} images.*{told}'):
        find_cost_weight(torch.tensor(scores), COSTS, target)


@pytest.mark.parametrize('target', [0, -1, math.nan])
def test_target_must_be_a_cost(scores, target):
    with pytest.raises(ValueError, match='use an average cost per image in GFLOPs'):
        find_cost_weight(scores, COSTS, target)


def test_setting_by_hand():
    scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 9.0], [5.0, 0.0, 0.0]])
    hits = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 1]], dtype=torch.bool)
    one = setting(scores, COSTS, 0.0, hits)
    assert one.shares == (0.5, 0.25, 0.25)
    assert one.cost == pytest.approx((4 + 2.5 + 1 + 4) / 4 + 0.3)
    assert one.top1 == 75
    cheaper = setting(scores, COSTS, 3.0, hits)  # moves the first, which has 1.5 / 4 * 3 > 1 to gain
    assert cheaper.shares == (0.25, 0.5, 0.25) or cheaper.shares == (0.25, 0.0, 0.75)
    assert setting(scores, COSTS, 1e3).shares == (0, 0, 1)
    assert setting(scores, COSTS, 1e3).top1 is None


def test_curve_runs_from_the_most_expensive_to_the_cheapest(scores):
    curve = budget_curve(scores, COSTS, 10)
    assert len(curve) == 11  # and the choice as trained
    assert curve[0].shares == (1, 0, 0)
    assert curve[-1].shares == (0, 0, 1)
    assert [one.cost_weight for one in curve if one.cost_weight == 0] == [0]
    assert [one.cost for one in curve] == sorted((one.cost for one in curve), reverse=True)
    assert [one.cost_weight for one in curve] == sorted(one.cost_weight for one in curve)
    for one in curve:
        assert one.cost == pytest.approx(average(scores, one.cost_weight))
    gaps = [a.cost - b.cost for a, b in itertools.pairwise(one for one in curve if one.cost_weight != 0)]
    assert max(gaps) < 1.5 * 3 / 9


def test_model_keeps_to_its_budget(model):
    model, x = model
    rows = timm_drnet.cost_table(model)
    plain = model.predict_resolution(x)
    logits = model.forward_at(x, plain)
    target = (0.5 * rows[0].total_flops + 0.5 * rows[1].total_flops) / 1e9
    budget = model.set_budget(target, [x[:30], x[30:]])
    assert (budget.unit, budget.images, budget.target) == ('GFLOPs', 60, target)
    choice = model.predict_resolution(x)
    assert not torch.equal(choice, plain)
    spent = sum(rows[j].total_flops for j in choice.tolist()) / len(x) / 1e9
    assert spent == pytest.approx(target, rel=0.01)
    assert spent == pytest.approx(budget.chosen.cost)
    torch.testing.assert_close(model(x), model.forward_at(x, choice))
    assert model.set_budget(None) is None
    assert torch.equal(model.predict_resolution(x), plain)
    torch.testing.assert_close(model(x), logits)


def test_budget_with_labels_tells_the_accuracy(model):
    model, x = model
    target = torch.arange(len(x)) % 5
    budget = find_budget(model, None, [(x, target)])
    assert budget.chosen is None
    assert model.args.cost_weight == 0
    for one in budget.curve:
        set_cost_weight(model, one.cost_weight)
        assert one.top1 == pytest.approx(100 * float((model(x).argmax(dim=1) == target).double().mean()))


def test_training_is_not_affected(model):
    model, x = model
    model.train()
    torch.manual_seed(5)
    before = model(x[:8])
    set_cost_weight(model, 1e6)
    torch.manual_seed(5)
    assert torch.equal(model(x[:8]), before)
    assert set(model.eval().predict_resolution(x).tolist()) == {2}


def test_unreachable_target_changes_nothing(model):
    model, x = model
    set_cost_weight(model, 0.25)
    with pytest.raises(ValueError, match='Invalid target 100'):
        model.set_budget(100, [x])
    assert model.args.cost_weight == 0.25


@pytest.mark.parametrize(('batches', 'told'), [
    ([], 'There are no images'),
    ([torch.full((2, 3, 64, 64), math.nan)], 'scores that are not finite'),
    ([torch.zeros(2, 3, 64, 64), (torch.zeros(2, 3, 64, 64), torch.zeros(2))], 'Some batches have labels'),
])
def test_useless_images(model, batches, told):
    with pytest.raises(ValueError, match=told):
        model[0].set_budget(0.01, batches)


def test_pretrain_stage_has_no_dial(make_tiny, images):
    with pytest.raises(ValueError, match='of the pretrain stage'):
        make_tiny(stage='pretrain').set_budget(0.01, [images(2)])


def test_dial_goes_where_the_model_goes(model, tmp_path):
    model, x = model
    set_cost_weight(model, 1.5)
    choice = model.predict_resolution(x)
    assert not torch.equal(choice, timm_drnet.DRNet.predict_resolution(set_weight(model, 0.0), x))
    set_weight(model, 1.5)
    with torch.inference_mode():
        assert torch.equal(model.deploy(micro_batch=0).predict_resolution(x), choice)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)
    export_model(model, tmp_path / 'torch', timm_drnet.cost_table(model), 'torch')
    exported = timm_drnet.ExportedDRNet(tmp_path / 'torch')
    assert torch.equal(exported.predict_resolution(x), choice)
    assert exported.manifest['cost_weight'] == 1.5
    save_folder(model, tmp_path / 'saved')
    assert not (tmp_path / 'saved' / 'README.md').exists()
    loaded = timm.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True).eval()
    assert loaded.args.cost_weight == 1.5
    assert torch.equal(loaded.predict_resolution(x), choice)


def test_priced_predictor_leaves_the_predictor_alone(model):
    model, x = model
    before = {k: v.clone() for k, v in model.predictor.state_dict().items()}
    assert priced_predictor(model) is model.predictor
    set_cost_weight(model, 2.0)
    priced = priced_predictor(model)
    rows = timm_drnet.cost_table(model)
    fractions = torch.tensor([row.fraction for row in rows])
    small = torch.nn.functional.interpolate(x, size=(32, 32), mode='bilinear', align_corners=False)
    torch.testing.assert_close(priced(small), model.predictor(small) - 2 * fractions)
    after = model.predictor.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert priced.conv_stem.weight is model.predictor.conv_stem.weight


def test_dial_follows_a_change_of_cost(model):
    model, x = model
    model.args = replace(model.args, cost=(1.0, 1.0, 1.0, 0.0))
    set_cost_weight(model, 1.0)  # all cost the same: nothing to weigh
    plain = model.predict_resolution(x)
    set_cost_weight(model, 0.0)
    assert torch.equal(model.predict_resolution(x), plain)
    model.args = replace(model.args, cost=(1.0, 0.1, 1.0, 0.0))
    set_cost_weight(model, 50.0)
    assert set(model.predict_resolution(x).tolist()) == {1}


@pytest.mark.parametrize('weight', [math.nan, math.inf])
def test_invalid_weight(make_tiny, weight):
    with pytest.raises(ValueError, match=f'Invalid cost_weight {weight}'):
        make_tiny(cost_weight=weight)


def set_weight(model, weight):
    set_cost_weight(model, weight)
    return model


def test_dial_with_measured_costs(make_tiny, images):
    """Measuring asks the model for choices, which must not ask for what is measured."""
    model = make_tiny(cost='latency', cost_weight=0.1).eval()
    *backbone, _ = model.args.cost
    assert min(backbone) > 0
    assert model.prices == pytest.approx([0.1 * cost / max(backbone) for cost in backbone])
    assert model(images(2)).shape == (2, 5)
    assert latency_table(model)[0].backbone_ms > 0
    assert torch.equal(model.deploy(micro_batch=0).predict_resolution(images(8)), model.predict_resolution(images(8)))


@pytest.mark.parametrize('target', [math.inf, math.nan, -1.0, 0.0])
def test_target_that_is_none(model, target):
    model, x = model
    with pytest.raises(ValueError, match=f'Invalid target {target}'):
        model.set_budget(target, [x])
