"""The slider: its ends, its middle, and that it never changes the model that everybody shares."""

import dataclasses

import pytest
import torch

from timm_drnet.core.routing import route
from timm_drnet.cost.flops import cost_table
from timm_drnet.demo.dial import Dial
from timm_drnet.evaluate.answers import choose, collect_answers


@pytest.fixture(params=['cascade', 'predictor'])
def model(request, make_cascade, tiny, images, spread_choices):
    """A model that sends images(30) to all of its three resolutions."""
    if request.param == 'cascade':
        return make_cascade()
    spread_choices(tiny, images(30)[:24])
    return tiny


def test_from_the_fewest_flops_to_the_most(model, images):
    x, dial = images(30), Dial(model)
    before = model.args
    answers = collect_answers(model, [x])
    averages = []
    for position in range(101):
        choice, paid = choose(dial.turn(position), answers), dial.paid(position)
        if position % 25 == 0 or position == dial.own:
            assert torch.equal(choice, dial.turn(position).classify(x)[1])  # what the model itself does there
        averages.append(sum(paid[model.resolutions[j]] for j in choice.tolist()))
    assert averages == sorted(averages)
    assert choose(dial.turn(0), answers).tolist() == [2] * 30
    assert choose(dial.turn(100), answers).tolist() == [0] * 30
    assert [*dial.paid(25).values()] == [row.total_flops for row in cost_table(dial.turn(25))]
    assert dial.turn(dial.own) is model
    assert model.args is before
    logits, _ = route(x, choose(model, answers), 3, lambda j, part: model.forward_at(part, j))
    assert torch.allclose(model(x), logits, atol=1e-5)  # the copies have left nothing behind


@pytest.mark.parametrize('router', ['predictor', 'cascade'])
def test_one_resolution_is_no_choice(make_tiny, router):
    with pytest.raises(ValueError, match='one resolution, 64 px, and chooses nothing'):
        Dial(make_tiny(resolutions=(64,), router=router))


def test_position_is_the_threshold_of_the_smallest_rung(make_cascade):
    model = make_cascade()
    for thresholds, own in (((0.9, None), 90), ((None, None), 100), ((0.6, 0.7), 70)):
        model.args = dataclasses.replace(model.args, thresholds=thresholds)
        dial = Dial(model)
        assert dial.own == own
        assert dial.stops == (True, thresholds[0] is not None, thresholds[1] is not None or own == 100)
    larger, smaller = dial.turn(40).args.thresholds
    assert smaller == pytest.approx(0.4)
    assert larger == pytest.approx(0.3)  # odds of 3/2 and 7/3, both times 2/7


def test_position_of_a_predictor_is_how_sure_it_has_to_be(tiny):
    dial = Dial(tiny)
    assert dial.own == 50
    prices = dial.turn(80).prices
    assert prices[2] - prices[0] == pytest.approx(torch.logit(torch.tensor(0.8)).item())
    tiny.args = dataclasses.replace(tiny.args, cost_weight=dial.turn(80).args.cost_weight)
    assert Dial(tiny).own == 80


def test_a_model_that_chooses_nothing_is_refused(make_tiny):
    with pytest.raises(ValueError, match='pretrain stage and chooses nothing'):
        Dial(make_tiny(stage='pretrain'))
