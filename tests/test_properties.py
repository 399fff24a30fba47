"""What holds of all batches, arguments and scores, tried on many: hypothesis looks for one of which it does not."""

import dataclasses
import itertools
import math
from functools import cache

import pytest
import timm
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_models import shake

import timm_drnet
from timm_drnet.cascade.climb import confidence
from timm_drnet.core.arguments import DRNetArgs
from timm_drnet.cost.costs import Costs, set_cost_weight
from timm_drnet.cost.dial import find_cost_weight, setting
from timm_drnet.cost.thresholds import choose_thresholds
from timm_drnet.hub.publishing import save_folder

# The same examples in every run, and none of them measured by the clock.
settings.register_profile(
    'drnet', derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('drnet')

RESOLUTIONS = (64, 48, 32)
POOL = 16
NEAR = 1e-4
"""How far logits and probabilities may be from those of an image alone."""


# Every image gets its own answer, whatever the batch.


def shaken(**kwargs):
    """A tiny model in eval mode whose norms differ, and whose answers are of several minds."""
    torch.manual_seed(0)
    model = shake(timm_drnet.create_drnet(
        'test_resnet', resolutions=RESOLUTIONS, predictor='inverted_residual', predictor_size=32, num_classes=5,
        **kwargs)).eval()
    with torch.no_grad():
        model.get_classifier().weight.mul_(8)
        if model.predictor is not None:
            head = model.predictor.get_classifier()
            head.weight.normal_(0, 1)
            head.bias -= model.predictor_scores(pool()).mean(dim=0)
    return model


@cache
def pool():
    return torch.randn(POOL, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@cache
@torch.no_grad()
def alone(router):
    """A model, its deployed model, and of each image alone the logits at each candidate and the predictor's scores."""
    model = shaken(router=router)
    logits = torch.stack([torch.cat([model.forward_at(x[None], j) for j in range(3)]) for x in pool()])
    scores = None
    if router == 'predictor':
        scores = torch.cat([model.predictor_scores(x[None]) for x in pool()])
        assert len(scores.argmax(dim=1).unique()) == 3
    return model, model.deploy(micro_batch=0), logits, scores


batches = st.lists(st.integers(0, POOL - 1), max_size=9)


@torch.no_grad()
def check_answers(model, images, where, logits):
    """Hold the answers to a batch against those of each image alone; None where that is a matter of rounding."""
    x = pool()[images]
    if not images:
        for run in (model, model.classify, model.predict_resolution):
            with pytest.raises(ValueError, match=r'Invalid input of shape \(0, 3, 64, 64\)'):
                run(x)
        return
    answer, choice = model.classify(x)
    assert torch.equal(model.predict_resolution(x), choice)
    torch.testing.assert_close(model(x), answer, rtol=NEAR, atol=NEAR)
    assert all(w in (None, c) for w, c in zip(where, choice.tolist(), strict=True)), (where, choice)
    torch.testing.assert_close(answer, logits[images, choice], rtol=NEAR, atol=NEAR)


@settings(max_examples=15)
@given(images=batches, weight=st.floats(-20, 20), cut=st.integers(0, 4))
def test_predictor_gives_every_image_its_own_answer(images, weight, cut):
    model, deployed, logits, scores = alone('predictor')
    set_cost_weight(model, weight)
    prices = torch.tensor(model.prices)

    def expected(scores):
        best = scores.topk(2).values
        return scores.argmax(dim=1).masked_fill(best[:, 0] - best[:, 1] < NEAR, -1)[images].tolist()

    check_answers(model, images, [None if j < 0 else j for j in expected(scores - prices)], logits)
    deployed.micro_batch, deployed.predictor_micro_batch = (cut,) * 3, cut  # the dial, at 0, is inside its predictor
    check_answers(deployed, images, [None if j < 0 else j for j in expected(scores)], logits)


@settings(max_examples=20)
@given(
    images=batches, thresholds=st.tuples(*[st.none() | st.floats(0.2, 1.01)] * 2), cut=st.integers(0, 4))
def test_cascade_gives_every_image_its_own_answer(images, thresholds, cut):
    model, deployed, logits, _ = alone('cascade')
    where = []
    for sure in torch.stack([confidence(each) for each in logits])[images].tolist():
        tried = [(j, sure[j] - t) for j, t in ((2, thresholds[1]), (1, thresholds[0])) if t is not None]
        stop = next((j for j, margin in tried if margin >= 0), 0)
        where.append(None if any(abs(margin) < NEAR for _, margin in tried) else stop)
    for each in (model, deployed):
        each.args = dataclasses.replace(model.args, thresholds=thresholds)
    deployed.micro_batch = (cut,) * 3
    check_answers(model, images, where, logits)
    check_answers(deployed, images, where, logits)


# Arguments, as a config.json may have them, are taken or refused by one kind of error.


texts = st.sampled_from(['', 'flops', 'latency', 'all', 'utility', 'pretrain', 'cascade']) | st.text(max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 300) | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2), max_leaves=6)


@settings(max_examples=150)
@given(args=st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(DRNetArgs)]), json_values, max_size=3))
@example(args={'alpha': 10 ** 400})
@example(args={'cost': 5})
@example(args={'router': 'cascade', 'thresholds': 5})
def test_arguments_are_taken_or_refused(args):
    try:
        taken = DRNetArgs(**args)
    except ValueError:
        return
    assert dataclasses.replace(taken) == taken
    hash(taken)


# Saved, loaded and saved again, a model is the same to the last byte.


numbers = st.floats(0, 1e6) | st.integers(0, 1000)
positive = st.floats(1e-6, 1e6) | st.integers(1, 1000)


@st.composite
def arguments(draw):
    """Arguments that `DRNetArgs` takes."""
    sides = tuple(sorted(draw(st.sets(st.integers(32, 96), min_size=1, max_size=3)), reverse=True))
    router = draw(st.sampled_from(['predictor', 'cascade']))
    joint = draw(st.sampled_from(['drawn', 'all']))
    costs = st.tuples(*[st.floats(0.1, 1e4)] * len(sides), st.floats(0, 10))
    args = {
        'resolutions': sides, 'router': router, 'predictor': 'inverted_residual', 'joint_resolutions': joint,
        'predictor_size': draw(st.sampled_from([0, 32, 45])), 'stage': draw(st.sampled_from(['joint', 'pretrain'])),
        'alpha': draw(st.none() | positive), 'eta': draw(numbers), 'tau': draw(positive),
        'distill': draw(numbers), 'distill_topdown': draw(numbers),
        'resolution_aware_norm': draw(st.booleans()), 'cost': draw(st.just('flops') | costs),
        'cost_weight': draw(st.just(0.0) | st.floats(-1e3, 1e3)),
        'predictor_loss': draw(st.sampled_from(['expected', 'utility'])) if joint == 'all' else 'expected',
    }
    if router == 'cascade' and draw(st.booleans()):
        args['thresholds'] = tuple(draw(st.none() | st.floats(-1, 2)) for _ in sides[1:])
    DRNetArgs(**args)
    return args


@settings(max_examples=10)
@given(args=arguments(), classes=st.integers(0, 5), channels=st.sampled_from([1, 3]))
def test_save_load_save_changes_no_byte(tmp_path_factory, args, classes, channels):
    folder = tmp_path_factory.mktemp('saved')
    torch.manual_seed(0)
    model = timm_drnet.create_drnet('test_resnet', num_classes=classes, in_chans=channels, **args)
    save_folder(model, folder / 'a')
    loaded = timm.create_model(f'local-dir:{folder / "a"}', pretrained=True)
    assert loaded.args == model.args
    save_folder(loaded, folder / 'b')
    names = sorted(path.name for path in (folder / 'a').iterdir())
    assert names == sorted(path.name for path in (folder / 'b').iterdir()) == ['config.json', 'model.safetensors']
    for name in names:
        assert (folder / 'a' / name).read_bytes() == (folder / 'b' / name).read_bytes(), name


# The dial: who asks for more never gets less, and pays no more than was asked for.


def reached(find, targets):
    """Targets, in order, with what each costs; those that cannot be met are left out."""
    found = []
    for target in sorted(targets):
        try:
            found.append((target, find(target)))
        except ValueError:
            continue
    return found


costs = st.lists(st.floats(0.05, 1), min_size=1, max_size=3).map(lambda parts: tuple(4 * p for p in (1, *parts)))
shares = st.lists(st.floats(0.01, 1.2), min_size=2, max_size=6)


def drawn(seed, images, candidates, digits):
    """Random numbers, with many equal ones where they have few digits."""
    random = torch.rand(images, candidates, generator=torch.Generator().manual_seed(seed))
    return random.mul(10 ** digits).round() / 10 ** digits


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2 ** 32), images=st.integers(1, 300), digits=st.integers(1, 6), scale=st.floats(0.1, 100),
    costs=costs, predictor=st.floats(0, 1), shares=shares, weights=st.lists(st.floats(-2, 2), max_size=3))
@example(
    seed=0, images=21, digits=1, scale=1.0, costs=(4.0, 2.0, 4.0), predictor=0.0, shares=[], weights=[]
).via('equal scores: what the weight 0 costs was out of reach')
def test_dial_of_a_predictor_is_monotone(seed, images, digits, scale, costs, predictor, shares, weights):
    scores = scale * (drawn(seed, images, len(costs), digits) - 0.5)
    prices = Costs('GFLOPs', costs, predictor)
    # Met by these, so that they have to be found; 0 is among them, others where no two scores are equal.
    met = {setting(scores, prices, weight).cost for weight in (0.0, *(scale * (w + math.pi / 1000) for w in weights))}
    found = reached(
        lambda target: setting(scores, prices, find_cost_weight(scores, prices, target)).cost,
        [*met, *(share * (max(costs) + predictor) for share in shares)])
    assert met <= {target for target, _ in found}
    assert all(cost <= 1.01 * target for target, cost in found)
    assert [cost for _, cost in found] == sorted(cost for _, cost in found)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2 ** 32), images=st.integers(1, 300), digits=st.integers(1, 6), costs=costs,
    right=st.floats(0, 1), shares=shares)
def test_dial_of_a_cascade_is_monotone(seed, images, digits, costs, right, shares):
    sure = drawn(seed, images, len(costs), digits)
    likely = drawn(seed + 1, images, len(costs), 6) * right
    likely[:, 0] = 1
    found = reached(
        lambda target: choose_thresholds(sure, likely, costs, target).cost,
        [costs[0], *(share * costs[0] for share in shares)])
    assert costs[0] in {target for target, _ in found}
    assert all(cost <= 1.01 * target for target, cost in found)
    for (target, cost), (more, dearer) in itertools.pairwise(found):
        assert dearer >= cost or (more < 1.0203 * target and dearer >= 0.98 * cost)  # both are within 1 % of theirs
