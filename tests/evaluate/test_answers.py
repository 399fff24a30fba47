"""Answers of one pass, held against the model asked about one image at a time."""

import contextlib
import dataclasses

import pytest
import torch

from timm_drnet.cost.costs import set_cost_weight
from timm_drnet.cost.flops import cost_table
from timm_drnet.deploy.pieces import forward_in_pieces, pieces
from timm_drnet.evaluate.answers import choose, collect_answers
from timm_drnet.evaluate.curve import all_budgets


@pytest.fixture
def make(make_cascade, tiny, make_tiny, images, spread_choices):
    """Function that creates a model of each kind that sends images to each resolution, if it routes them at all."""

    def make(kind):
        if kind == 'cascade':
            return make_cascade(num_classes=7)
        if kind == 'pretrain':
            return make_tiny(stage='pretrain').eval()
        spread_choices(tiny, images(12))
        if kind == 'dial':
            set_cost_weight(tiny, 1.0)
        return tiny

    return make


@pytest.mark.parametrize('labelled', [True, False])
@pytest.mark.parametrize('kind', ['predictor', 'dial', 'cascade', 'pretrain'])
def test_choices_are_those_of_the_model(make, images, kind, labelled):
    model, x = make(kind), images(12)
    batches = zip(x.split(5), torch.arange(12).remainder(5).split(5), strict=True) if labelled else x.split(5)
    answers = collect_answers(model, batches)
    with torch.no_grad():
        expected = model.predict_resolution(x)
        logits = [[model.forward_at(image[None], j)[0] for j in range(3)] for image in x]
    assert torch.equal(choose(model, answers), expected)
    assert len(expected.unique()) > (kind != 'pretrain')
    assert answers.classes.shape == answers.probabilities.shape == (12, 3, 5)
    for i, each in enumerate(logits):
        for j, row in enumerate(each):
            order = sorted(range(len(row)), key=lambda c: -row[c])[:5]
            assert answers.classes[i, j].tolist() == order
            torch.testing.assert_close(answers.probabilities[i, j], (row.exp() / row.exp().sum())[order])
    if labelled:
        assert answers.hits[:, :, 0].tolist() == [[int(row.argmax()) == i % 5 for row in each]
                                                  for i, each in enumerate(logits)]
    else:
        with pytest.raises(ValueError, match='no labels'):
            _ = answers.hits
    assert (answers.scores is None) == (kind in ('cascade', 'pretrain'))


@pytest.mark.parametrize('kind', ['predictor', 'cascade'])
@pytest.mark.parametrize(('batch', 'message'), [
    (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), 'Invalid input of type torch.uint8: use normalized images'),
    (torch.zeros(2, 3, 64, 48), r'Invalid input of shape \(2, 3, 64, 48\)')])
def test_what_is_no_batch_of_images_is_refused(make, kind, batch, message):
    with pytest.raises(ValueError, match=message):
        collect_answers(make(kind), [batch], only_scores=kind == 'predictor')


def test_scores_alone(tiny, images):
    x = images(6)
    answers = collect_answers(tiny, x.split(4), only_scores=True)
    torch.testing.assert_close(answers.scores, tiny.predictor_scores(x))
    assert answers.classes.shape == (6, 3, 0)
    assert torch.equal(choose(tiny, answers), tiny.predict_resolution(x))
    whole = collect_answers(tiny, [(x, torch.zeros(6))], only_scores=True)
    assert torch.equal(whole.classes, collect_answers(tiny, [x]).classes)


def test_dial_and_thresholds_may_move_afterwards(make, images):
    for kind in ('predictor', 'cascade'):
        model, x = make(kind), images(12)
        answers = collect_answers(model, [x])
        if kind == 'cascade':
            model.args = dataclasses.replace(model.args, thresholds=(None, 0.4))
        else:
            set_cost_weight(model, -2.0)
        assert torch.equal(choose(model, answers), model.predict_resolution(x))


def test_labels_for_some_batches_only(tiny, images):
    with pytest.raises(ValueError, match='Some batches have labels'):
        collect_answers(tiny, [images(2), (images(2), torch.tensor([0, 1]))])


@pytest.mark.parametrize('kind', ['predictor', 'cascade'])
def test_curve_is_what_the_dial_gives(make, images, kind):
    model, x = make(kind), images(12)
    target = torch.arange(12) % 5
    points = all_budgets(model, collect_answers(model, [(x, target)]))
    found = {}
    rows = cost_table(model)
    extra = rows[0].predictor_flops / 1e9
    for cost in torch.linspace(rows[-1].backbone_flops / 1e9, rows[0].backbone_flops / 1e9, 40).tolist():
        with contextlib.suppress(ValueError), torch.no_grad():  # out of reach
            chosen = model.set_budget(cost + extra, [x]).chosen
            found[round(chosen.cost, 9)] = 100 * float((model(x).argmax(dim=1) == target).double().mean())
    shown = {round(point.gflops, 9): point.top1 for point in points}
    assert list(shown) == sorted(shown)
    assert len(found) > 3
    assert {cost: shown.get(cost) for cost in found} == pytest.approx(found)


@torch.no_grad()
def test_a_processor_gets_a_large_batch_in_pieces(make, images, monkeypatch):
    model, x, ran = make('predictor'), images(19), []
    forward_at = model.forward_at
    monkeypatch.setattr(model, 'forward_at', lambda part, j: ran.append(len(part)) or forward_at(part, j))
    torch.testing.assert_close(forward_in_pieces(model, x, 1), forward_at(x, 1))
    assert ran == [7, 6, 6]
    assert pieces(x.to('meta'))[0].shape == x.shape  # no processor: whole
