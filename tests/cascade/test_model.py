"""A cascade as a model: everywhere a router is, images stop where their answers are sure."""

import copy
import pickle
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf
from timm.task import ClassificationTask

import timm_drnet
from timm_drnet.cascade.rungs_alone import rungs_alone
from timm_drnet.core.arguments import DRNetArgs
from timm_drnet.cost.costs import measure_costs
from timm_drnet.hub.checkpoints import checkpoint_filter_fn

RESOLUTIONS = (64, 48, 32)


@pytest.fixture
def cascade(make_cascade, images):
    """A cascade in eval mode that stops a third of these images at each resolution, and the images."""
    return make_cascade(), images(30)


def stops_by_hand(model, x):
    """Where each image stops, image by image, and its logits there."""
    where, logits = [], []
    for image in x:
        for j in (2, 1, 0):
            r = RESOLUTIONS[j]
            answer = model.branch(j)(F.interpolate(image[None], (r, r), mode='bilinear', align_corners=False))
            if j == 0 or answer.softmax(dim=1).max() >= model.args.thresholds[j - 1]:
                break
        where.append(j)
        logits.append(answer)
    return torch.tensor(where), torch.cat(logits)


@torch.no_grad()
def test_forward_is_that_of_each_image_alone(cascade):
    model, x = cascade
    where, logits = stops_by_hand(model, x)
    assert torch.bincount(where).tolist() == [10, 10, 10]
    torch.testing.assert_close(model(x), logits)
    assert model.last_counts == [10, 20, 30]
    assert torch.equal(model.predict_resolution(x), where)
    together = model.classify(x)
    assert torch.equal(together[1], where)
    torch.testing.assert_close(together[0], logits)
    torch.testing.assert_close(model.forward_at(x, where), logits)


@pytest.mark.parametrize('make', [
    lambda model, x: model.deploy(micro_batch=4),
    lambda model, x: torch.jit.script(model),
    lambda model, x: torch.fx.symbolic_trace(model),
    lambda model, x: copy.deepcopy(model),
    lambda model, x: pickle.loads(pickle.dumps(model)),
    lambda model, x: model.to(memory_format=torch.channels_last),
], ids=['deployed', 'script', 'fx', 'copy', 'pickle', 'channels_last'])
@pytest.mark.filterwarnings('ignore:`torch.jit:FutureWarning')
@torch.no_grad()
def test_what_is_made_of_it_gives_the_same(cascade, make):
    model, x = cascade
    where, logits = stops_by_hand(model, x)
    made = make(model, x)
    torch.testing.assert_close(made(x), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made(x[3:4]), logits[3:4], rtol=1e-4, atol=1e-4)
    if hasattr(made, 'classify'):
        assert torch.equal(made.classify(x)[1], where)
        assert torch.equal(made.predict_resolution(x), where)


@torch.no_grad()
def test_saved_model_stops_at_the_same(cascade, tmp_path):
    model, x = cascade
    save_for_hf(model, tmp_path, model_args={'thresholds': model.args.thresholds}, safe_serialization=True)
    loaded = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert loaded.args == model.args
    assert torch.equal(loaded(x), model(x))


@torch.no_grad()
def test_image_that_is_no_number_goes_to_the_largest_and_disturbs_no_other(cascade):
    model, x = cascade
    where, logits = stops_by_hand(model, x)
    x[4] = float('nan')
    answer, choice = model.classify(x)
    assert choice[4] == 0
    assert answer[4].isnan().all()
    others = torch.arange(len(x)) != 4
    assert torch.equal(choice[others], where[others])
    torch.testing.assert_close(answer[others], logits[others])


def test_costs_are_of_every_rung_that_ran(cascade):
    model, _ = cascade
    flops = [row.backbone_flops for row in timm_drnet.cost_table(model)]
    assert [row.total_flops for row in timm_drnet.cost_table(model)] == [
        sum(flops), flops[1] + flops[2], flops[2]]
    assert {row.predictor_flops for row in timm_drnet.cost_table(model)} == {0}
    model.args = replace(model.args, thresholds=(None, 0.5))
    assert [row.total_flops for row in timm_drnet.cost_table(model)] == [
        flops[0] + flops[2], flops[1] + flops[2], flops[2]]


def test_plain_weights_need_no_training(images):
    plain = timm.create_model('test_resnet', num_classes=5).eval()
    model = timm_drnet.create_drnet('test_resnet', resolutions=RESOLUTIONS, router='cascade', num_classes=5).eval()
    model.load_state_dict(checkpoint_filter_fn(plain.state_dict(), model))
    assert model.predictor is None
    with torch.no_grad():
        assert torch.equal(model.forward_at(images(3), 0), plain(images(3)))


def test_training_is_at_all_resolutions(make_tiny, images):
    model = make_tiny(router='cascade').train()
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss())
    x, target = images(4), torch.arange(4)
    loss = task(x, target)['loss']
    logits = [model.forward_at(x, j) for j in range(3)]
    torch.testing.assert_close(loss, sum(F.cross_entropy(each, target) for each in logits))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_embeddings_have_no_confidence(make_tiny, images):
    model = make_tiny(router='cascade', num_classes=0).eval()
    assert torch.equal(model(images(3)), model.forward_at(images(3), 0))
    assert model.predict_resolution(images(3)).tolist() == [0, 0, 0]
    with pytest.raises(RuntimeError, match='A cascade has no predictor'):
        model.predictor_scores(images(3))


@pytest.mark.parametrize('thresholds', [(0.5,), (0.5, 0.5, 0.5), ('a', 0.5), (float('nan'), 0.5)])
def test_thresholds_that_are_none(make_tiny, thresholds):
    with pytest.raises(ValueError, match='Invalid thresholds .* 2 numbers or None'):
        make_tiny(router='cascade', thresholds=thresholds)


@pytest.mark.parametrize(('given', 'kept'), [((), (0.8,)), ([], (0.8,)), (0.0, (0.0,)), (None, (None,)), (0.5, (0.5,))])
def test_one_threshold_may_stand_alone(given, kept):
    assert DRNetArgs(resolutions=(64, 48), router='cascade', thresholds=given).thresholds == kept


def test_one_class_is_always_certain(make_tiny, images):
    model = make_tiny(router='cascade', num_classes=1).eval()
    with pytest.raises(ValueError, match='two classes or more'):
        model(images(2))
    assert model.forward_at(images(2), 1).shape == (2, 1)


def test_thresholds_of_a_predictor_are_refused(make_tiny):
    with pytest.raises(ValueError, match='Invalid thresholds'):
        make_tiny(thresholds=(0.5, 0.5))


def test_budget_is_met_without_labels(cascade):
    model, x = cascade
    model.backbone.layer1.train()  # a mode that differs from the model's
    modes = [module.training for module in model.modules()]
    costs = [row.backbone_flops / 1e9 for row in timm_drnet.cost_table(model)]
    target = costs[2] + 0.5 * costs[0]  # half of the images go on to the largest
    budget = model.set_budget(target, [x[:20], x[20:]])
    assert [module.training for module in model.modules()] == modes
    model.eval()
    assert budget.chosen.cost == pytest.approx(target, rel=0.01)
    where = model.predict_resolution(x)
    paid = torch.tensor([row.total_flops / 1e9 for row in timm_drnet.cost_table(model)])[where]
    assert float(paid.mean()) == pytest.approx(target, rel=0.01)
    kept = model(x).argmax(dim=1) == model.forward_at(x, 0).argmax(dim=1)
    assert budget.chosen.agreement == pytest.approx(100 * float(kept.double().mean()))
    assert budget.chosen.top1 is None
    labelled = model.set_budget(target, [(x, model.forward_at(x, 0).argmax(dim=1))])
    assert labelled.chosen.top1 == pytest.approx(labelled.chosen.agreement)
    before = model.args
    with pytest.raises(ValueError, match='Invalid target 1: .*reach'):
        model.set_budget(1.0, [x])
    assert model.args == before
    with pytest.raises(ValueError, match='Invalid target None: the thresholds of a cascade are no part'):
        model.set_budget(None)
    assert model.args == before


@pytest.mark.parametrize(('kept', 'sides'), [((0,), (64, 48)), ((1,), (64, 32)), ((), (64,)), ((0, 1), RESOLUTIONS)])
def test_rungs_alone_answer_as_the_whole_cascade(cascade, kept, sides):
    model, x = cascade
    thresholds = tuple(t if j in kept else None for j, t in enumerate(model.args.thresholds))
    prices = dict(zip(RESOLUTIONS, (4.0, 3.0, 2.0), strict=True))
    model.args = replace(model.args, thresholds=thresholds, cost=(*prices.values(), 0.0))
    part = rungs_alone(model)
    assert part.resolutions == sides
    with torch.no_grad():
        (whole, stopped), (found, choice) = model.classify(x), part.classify(x)
    assert torch.equal(found, whole)
    assert [sides[j] for j in choice] == [RESOLUTIONS[j] for j in stopped]
    assert len(choice.unique()) == len(sides)  # every rung counts
    assert measure_costs(part).backbone == tuple(prices[side] for side in sides)
    assert model.resolutions == RESOLUTIONS


def test_rungs_alone_keep_their_own_thresholds(make_tiny):
    model = make_tiny(router='cascade', resolutions=(64, 56, 48, 32), thresholds=(0.7, None, 0.9))
    part = rungs_alone(model)
    assert (part.resolutions, part.args.thresholds) == ((64, 56, 32), (0.7, 0.9))
