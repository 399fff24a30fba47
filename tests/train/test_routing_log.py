"""What is logged about the routing, when, and with which numbers."""

import copy
import logging
import pickle
from types import SimpleNamespace

import pytest
import timm
import torch

import timm_drnet
from timm_drnet.train.routing_log import RoutingLog, install_routing_log


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
    log = RoutingLog((64, 32), [4_000_000_000, 1_000_000_000], 500_000_000)
    log.counts, log.images, log.of_training = [1, 3], 4, False
    log.report()
    assert lines() == [
        'DRNet evaluation: 2.25 GFLOPs per image on average (56.2% of the backbone at 64 px), 4 images,'
        ' 64 px: 25.0%, 32 px: 75.0%']


@pytest.mark.parametrize(('counts', 'told'), [([4, 96], True), ([6, 94], False)])
def test_collapse_is_told_with_a_remedy(lines, counts, told):
    log = RoutingLog((64, 32), [4_000_000_000, 1_000_000_000], 500_000_000)
    log.counts, log.images, log.of_training = counts, 100, False
    log.report()
    _, *warning = lines()
    assert ['96.0% of the images to 32 px' in one and "router='cascade', distill=1" in one
            for one in warning] == [True] * told


def test_counts_on_the_device_are_read_for_the_report(lines):
    """Training at all resolutions leaves them there."""
    log = RoutingLog((64, 32), [4_000_000_000, 1_000_000_000], 0)

    def run(training, counts, images):
        log.after_forward(SimpleNamespace(training=training, last_counts=counts), (), torch.zeros(images, 5))

    run(True, torch.tensor([1, 3]), 4)
    run(True, torch.tensor([2, 0]), 2)
    run(False, [0, 2], 2)
    run(True, torch.tensor([1, 0]), 1)
    log.report()
    assert [line.partition(' GFLOPs')[0] for line in lines()] == [
        'DRNet training: 2.5', 'DRNet evaluation: 1', 'DRNet training: 4']


@pytest.fixture
def logged(make_tiny):
    """Function that makes a tiny model with a routing log."""

    def make(**kwargs):
        model = make_tiny(**kwargs)
        install_routing_log(model)
        return model

    return make


def run_in_training(model, x):
    model.train()
    logits = model(x)
    model.take_step()
    return logits


@pytest.mark.parametrize('end', ['training', 'state_dict'])
def test_evaluation_is_reported_once_at_its_end(logged, shake, spread_choices, images, lines, end):
    model, x = shake(logged()).eval(), images(13)
    counts = count(spread_choices(model, x))
    model(x[:6])
    model(x[6:])
    assert lines() == []
    model.state_dict() if end == 'state_dict' else run_in_training(model, x)
    assert lines() == [expected_line(model, 'evaluation', counts)]
    model.state_dict()
    assert lines() == []


def test_training_is_reported_when_evaluation_begins_and_not_by_state_dict(logged, images, lines):
    model = logged(tau=0.01)
    counts = [0, 0, 0]
    for seed in range(3):
        run_in_training(model, images(4, seed=seed))
        counts = [a + b for a, b in zip(counts, model.last_counts, strict=True)]
    model.state_dict()  # a checkpoint in the middle of an epoch
    assert lines() == []
    model.eval()(images(2))
    assert lines() == [expected_line(model, 'training', counts)]


def test_pretrain_stage_reports_every_resolution_without_predictor(logged, images, lines):
    model = logged(stage='pretrain')
    run_in_training(model, images(4))
    model.eval()(images(3))
    assert lines() == [expected_line(model, 'training', [4, 4, 4], images=4, predictor=False)]
    run_in_training(model, images(4))
    assert lines() == [expected_line(model, 'evaluation', [3, 0, 0], predictor=False)]


def test_only_the_model_s_own_choices_are_counted(logged, images, lines):
    model = logged().eval()
    model.forward_at(images(2), 1)
    model.predict_resolution(images(2))
    model.branch(0)(images(2))
    model.forward_features(images(2))
    model.state_dict()
    assert lines() == []


def test_state_dict_counts_no_flops(logged, images, monkeypatch, lines):
    model = logged().eval()
    model(images(2))
    monkeypatch.setattr('timm_drnet.cost.flops.FlopCountAnalysis', lambda *_: pytest.fail('FLOPs were counted'))
    model.__dict__.pop('_cost_table')
    model.state_dict()
    assert len(lines()) == 1


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_count_for_themselves(logged, images, lines, clone):
    model = logged().eval()
    twin = clone(model)
    model(images(4))
    twin(images(2))
    twin.state_dict()
    assert ' 2 images' in lines()[0]
    model.state_dict()
    assert ' 4 images' in lines()[0]


def test_a_task_of_timm_installs_the_log_once(make_tiny, images, lines):
    model = make_tiny().train()
    assert type(model).train is torch.nn.Module.train  # a model that nobody trains counts nothing
    keys = list(model.state_dict())
    for _ in range(2):
        task = timm.task.ClassificationTask(model, torch.nn.CrossEntropyLoss())
    task(images(4), torch.arange(4))
    model.eval()(images(1))
    assert len(lines()) == 1
    assert list(model.state_dict()) == keys


def test_checkpoint_of_an_epoch_without_a_step_is_refused(make_tiny, images):
    """What timm's train.py does with a batch larger than the data."""
    model = make_tiny().train()
    task = timm.task.ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    average = copy.deepcopy(model)
    model.eval()(images(1))
    model.state_dict()  # evaluated before an epoch has begun
    for x in ([images(4)], []):
        task.get_trainable_module().train()
        for batch in x:
            task(batch, torch.arange(4))
        model.eval()(images(1))
        average.train().eval()(images(1))
        average.state_dict()
        if x:
            model.state_dict()
    with pytest.raises(RuntimeError, match=r'An epoch of training had no step.*Use a batch size \(train.py -b\) of at'):
        model.state_dict()
