"""What is logged about the routing, when, and with which numbers."""

import copy
import logging
import pickle

import pytest
import torch

import timm_drnet
from timm_drnet.train.routing_log import RoutingStatistics, log_routing


@pytest.fixture
def lines(caplog):
    """Function that returns what has been logged since the last call."""
    caplog.set_level(logging.INFO, logger='timm_drnet')

    def lines():
        messages = [record.getMessage() for record in caplog.records if record.name.startswith('timm_drnet')]
        caplog.clear()
        return messages

    return lines


def expected_line(model, name, counts, images=None, predictor=True):
    rows = timm_drnet.cost_table(model)
    images = images or sum(counts)
    flops = sum(n * row.backbone_flops for n, row in zip(counts, rows, strict=True)) / images
    flops += rows[0].predictor_flops * predictor
    shares = ', '.join(f'{row.resolution} px: {100 * n / images:.1f}%' for n, row in zip(counts, rows, strict=True))
    return (
        f'DRNet {name}: {flops / 1e9:.4g} GFLOPs per image on average ({100 * flops / rows[0].backbone_flops:.1f}% of'
        f' the backbone at 64 px), {images} images, {shares}')


def count(choice):
    return [int((choice == j).sum()) for j in range(3)]


def test_line_by_hand(lines):
    log_routing('evaluation', [1, 3], 4, (64, 32), [4_000_000_000, 1_000_000_000], 500_000_000)
    assert lines() == [
        'DRNet evaluation: 2.25 GFLOPs per image on average (56.2% of the backbone at 64 px), 4 images,'
        ' 64 px: 25.0%, 32 px: 75.0%']


def test_counts_add_up_and_start_anew():
    statistics = RoutingStatistics(3)
    statistics.add([1, 0, 2], 3)
    statistics.add([0, 5, 0], 5)
    assert statistics.take() == ([1, 5, 2], 8)
    assert statistics.take() == ([0, 0, 0], 0)


@pytest.mark.parametrize('end', ['train', 'eval', 'state_dict'])
def test_evaluation_is_reported_once_at_its_end(tiny, spread_choices, images, lines, end):
    x = images(13)
    counts = count(spread_choices(tiny, x))
    tiny(x[:6])
    tiny(x[6:])
    assert lines() == []
    getattr(tiny, end)()
    assert lines() == [expected_line(tiny, 'evaluation', counts)]
    tiny.eval()
    tiny.state_dict()
    assert lines() == []


def test_training_is_reported_at_the_switch_and_not_by_state_dict(make_tiny, images, lines):
    model = make_tiny(tau=0.01).train()
    chosen = []
    route = model._route
    model._route = lambda x, choice: (chosen.extend(choice.tolist()), route(x, choice))[1]
    for seed in range(3):
        model(images(4, seed=seed))
        model.take_step()
    model.state_dict()  # a checkpoint in the middle of an epoch
    assert lines() == []
    model.eval()
    assert lines() == [expected_line(model, 'training', count(torch.tensor(chosen)))]


def test_pretrain_stage_reports_every_resolution_without_predictor(make_tiny, images, lines):
    model = make_tiny(stage='pretrain').train()
    model(images(4))
    model.eval()
    assert lines() == [expected_line(model, 'training', [4, 4, 4], images=4, predictor=False)]
    model(images(3))
    model.train()
    assert lines() == [expected_line(model, 'evaluation', [3, 0, 0], predictor=False)]


def test_nothing_is_reported_when_nothing_ran(tiny, images, lines):
    tiny.train()
    tiny.eval()
    tiny.state_dict()
    tiny.forward_at(images(2), 1)  # not the model's own choice
    tiny.predict_resolution(images(2))
    tiny.branch(0)(images(2))
    tiny.forward_features(images(2))
    tiny.train()
    assert lines() == []


def test_nothing_is_counted_for_a_log_that_is_off(tiny, images, caplog):
    caplog.set_level(logging.WARNING, logger='timm_drnet')
    tiny(images(2))
    tiny.train()
    assert '_cost_table' not in tiny.__dict__


@pytest.mark.parametrize('clone', [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_start_at_zero(tiny, images, lines, clone):
    tiny(images(4))
    twin = clone(tiny)
    lines()
    twin.train()
    assert lines() == []
    tiny.train()
    assert len(lines()) == 1
