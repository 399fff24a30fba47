"""The latency table: the right things are timed, in turn, and the model stays as it is."""

import itertools
from dataclasses import replace

import pytest
import torch

import timm_drnet
from timm_drnet.cost.costs import Costs, measure_costs
from timm_drnet.cost.latency import latency_table
from timm_drnet.train.loss import training_loss

SECONDS = {'predict': 0.004, 0: 0.080, 1: 0.040, 2: 0.016}


@pytest.fixture
def clock(monkeypatch):
    """A clock that runs by known times for each call of a model, with a disturbance now and then; a log of calls."""
    log, now, disturbed = [], [0.0], itertools.cycle([1, 1, 1, 1, 5])

    def timed(name):
        log.append(name)
        now[0] += SECONDS[name] * next(disturbed)

    def forward_at(self, x, choice):
        assert not self.training
        timed(choice)
        log.append(len(x))

    def predict_resolution(self, x):
        timed('predict')

    monkeypatch.setattr(timm_drnet.DRNet, 'forward_at', forward_at)
    monkeypatch.setattr(timm_drnet.DRNet, 'predict_resolution', predict_resolution)
    monkeypatch.setattr('timm_drnet.deploy.stopwatch.time.perf_counter', lambda: now[0])
    return log


def test_medians_per_image(tiny, clock):
    rows = latency_table(tiny, batch_size=4, repeats=9)
    assert [row.resolution for row in rows] == [64, 48, 32]
    assert [row.backbone_ms for row in rows] == pytest.approx([20, 10, 4])
    assert [row.predictor_ms for row in rows] == pytest.approx([1, 1, 1])
    assert [row.total_ms for row in rows] == pytest.approx([21, 11, 5])
    assert [row.fraction for row in rows] == pytest.approx([1, 0.5, 0.2])
    # in turn, and each twice, of which the second time counts
    assert clock == ([0, 4] * 2 + [1, 4] * 2 + [2, 4] * 2 + ['predict'] * 2) * 9


def test_rungs_of_a_cascade_are_paid_for_and_no_predictor(make_tiny, clock):
    model = make_tiny(router='cascade').eval()
    rows = latency_table(model, batch_size=4, repeats=9)
    assert [row.predictor_ms for row in rows] == [0, 0, 0]
    assert [row.total_ms for row in rows] == pytest.approx([34, 14, 4])
    assert 'predict' not in clock  # which climbs
    model.args = replace(model.args, cost='latency')
    assert measure_costs(model).predictor == 0


def test_model_in_training_is_left_alone(tiny, clock):
    tiny.train()
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    latency_table(tiny, batch_size=1, repeats=1)
    assert tiny.training
    assert all(torch.equal(v, before[k]) for k, v in tiny.state_dict().items())


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('autocast', [False, True])
def test_images_are_like_the_caller_s(tiny, monkeypatch, layout, autocast):
    seen = set()

    def forward_at(self, x, choice):
        seen.add((x.dtype, x.is_contiguous(memory_format=layout), torch.is_autocast_enabled('cpu')))

    monkeypatch.setattr(timm_drnet.DRNet, 'forward_at', forward_at)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        latency_table(tiny.double().to(memory_format=layout), batch_size=2, repeats=1)
    assert seen == {(torch.float64, True, autocast)}


def test_real_clock(tiny):
    rows = latency_table(tiny, batch_size=2, repeats=3)
    assert all(row.backbone_ms > 0 and row.predictor_ms > 0 for row in rows)
    assert latency_table(tiny.deploy(micro_batch=0), 2, 3)[0].backbone_ms > 0


def test_nothing_is_timed_as_it_was_compiled(tiny):
    ran = []
    tiny.compile(backend=lambda graph, inputs: ran.append(graph) or graph)
    latency_table(tiny, batch_size=2, repeats=1)
    assert ran == []


def test_measured_within_a_step_leaves_its_weights_their_gradients(tiny, images):
    with torch.autocast('cpu', torch.bfloat16):
        latency_table(tiny, batch_size=1, repeats=1)
        tiny.forward_at(images(2), 1).sum().backward()
    assert next(tiny.backbone.parameters()).grad is not None


@pytest.mark.parametrize(('kwargs', 'told'), [
    ({'batch_size': 0}, 'Invalid batch_size 0'), ({'repeats': 0}, 'Invalid repeats 0')])
def test_invalid_arguments(tiny, kwargs, told):
    with pytest.raises(ValueError, match=told):
        latency_table(tiny, **kwargs)


def test_meta_device(make_tiny):
    with pytest.raises(ValueError, match='on the meta device'):
        latency_table(make_tiny().to('meta'))


def test_costs_of_a_model(tiny, clock):
    rows = timm_drnet.cost_table(tiny)
    assert measure_costs(tiny) == Costs(
        'GFLOPs', tuple(row.backbone_flops / 1e9 for row in rows), rows[0].predictor_flops / 1e9)
    tiny.args = replace(tiny.args, cost='latency')
    measured = measure_costs(tiny)
    assert measured.unit == 'ms'
    assert measured.backbone == pytest.approx((10, 5, 2))  # batches of 8
    assert measured.predictor == pytest.approx(0.5)
    calls = len(clock)
    assert measure_costs(tiny) == measured
    assert len(clock) == calls  # measured once
    assert tiny.args.cost == (*measured.backbone, measured.predictor)  # and kept


def test_loss_in_milliseconds(make_tiny, images):
    model = make_tiny(cost=(20, 10, 4, 1), alpha=8.0, eta=0.5).train()
    target = torch.arange(6) % 5
    criterion = torch.nn.CrossEntropyLoss()
    output = model(images(6))
    h = model._step.h.detach()
    loss = training_loss(model, criterion, output, target)
    spent = sum(c * float(n) for c, n in zip((20, 10, 4), h.sum(dim=0), strict=True)) / 6  # Eq. 6
    expected = criterion(output, target) + 0.5 * max(0.0, (spent - 8) / (20 - 4))  # Eq. 7 and 8
    torch.testing.assert_close(loss, expected)
    assert loss > criterion(output, target)


@pytest.mark.parametrize(('alpha', 'told'), [(21.0, 'will always be 0'), (3.9, 'can never be 0'), (8.0, None)])
def test_alpha_out_of_range_is_told_once(make_tiny, images, caplog, alpha, told):
    model = make_tiny(cost=(20, 10, 4, 1), alpha=alpha).train()
    for _ in range(2):
        training_loss(model, torch.nn.CrossEntropyLoss(), model(images(4)), torch.arange(4))
    found = [record.getMessage() for record in caplog.records if 'alpha=' in record.getMessage()]
    assert len(found) == (told is not None)
    assert told is None or (told in found[0] and '4 to 20 ms' in found[0])


@pytest.mark.parametrize('cost', ['time', (1, 2, 3), (1, 2, 0, 1), (1, 2, -1, 1), (1, 2, float('nan'), 1), ()])
def test_invalid_cost(make_tiny, cost):
    with pytest.raises(ValueError, match='Invalid cost .* 4 numbers, the milliseconds'):
        make_tiny(cost=cost)
