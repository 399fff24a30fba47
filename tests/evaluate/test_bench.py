"""The arithmetic of the benchmark, on an engine and a clock whose times are known."""

import importlib.metadata

import pytest
import torch

import timm_drnet
from timm_drnet.evaluate.bench import Batch, bench, describe_machine, mixed_batches

MS = {0: 0.012, 1: 0.006, 2: 0.003}  # seconds that a batch takes at each candidate
PREDICTOR = 0.002


class Clockwork:
    """An engine that sets the clock forward by known times, and keeps a log."""

    resolutions = (64, 48, 32)

    def __init__(self):
        self.log = []
        self.now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def predict_resolution(self, x):
        self.log.append(('predict', len(x)))
        self.sleep(PREDICTOR)
        return torch.zeros(len(x), dtype=torch.int64)

    def forward_at(self, x, choice):
        if isinstance(choice, int):
            self.log.append((choice, len(x)))
            self.sleep(MS[choice])
        else:
            self.log.append((choice.tolist(), len(x)))
            self.sleep(sum(MS[j] for j in choice.tolist()) / len(x))
        return torch.zeros(len(x), 5)


@pytest.fixture
def engine(monkeypatch):
    """The engine, by whose clock the benchmark measures."""
    engine = Clockwork()
    monkeypatch.setattr('timm_drnet.deploy.stopwatch.time.perf_counter', lambda: engine.now)
    return engine


def bench_one(engine, *args, **kwargs):
    """What is measured of a single engine."""
    [result] = bench({'clockwork': lambda: engine}, *args, **kwargs).values()
    return result


@pytest.fixture
def costs(tiny):
    return timm_drnet.cost_table(tiny)


@pytest.mark.parametrize(('size', 'mix', 'counts'), [
    (32, (0.25, 0.35, 0.40), (8, 11, 13)), (8, (0.25, 0.35, 0.40), (2, 3, 3)), (3, (0.34, 0.33, 0.33), (1, 1, 1)),
    (2, (0.2, 0.2, 0.6), (1, 0, 1)), (4, (0, 0, 1), (0, 0, 4)), (5, (1, 0, 0), (5, 0, 0))])
def test_mix_is_given_in_whole_images(size, mix, counts):
    [batch] = mixed_batches(torch.zeros(size, 3, 8, 8), mix)
    assert torch.bincount(batch.choice, minlength=3).tolist() == list(counts)


def test_images_of_a_mix_are_not_sorted():
    [batch] = mixed_batches(torch.zeros(32, 3, 8, 8), (0.25, 0.35, 0.40))
    assert batch.choice.tolist() != sorted(batch.choice.tolist())


def test_a_single_image_takes_each_resolution_in_turn():
    batches = mixed_batches(torch.zeros(1, 3, 8, 8), (0.25, 0.75, 0))
    assert [(batch.choice.tolist(), batch.weight) for batch in batches] == [([0], 0.25), ([1], 0.75)]


def test_times_and_flops_of_a_mixed_batch(engine, costs, images):
    batches = mixed_batches(images(4), (0.25, 0.25, 0.5))
    result = bench_one(engine, batches, costs, repeats=5)
    assert result.batch_size == 4
    assert result.shares == (0.25, 0.25, 0.5)
    dynamic, *held, everything = result.timings
    assert [row.name for row in result.timings] == [
        'dynamic', 'held at 64 px', 'held at 48 px', 'held at 32 px', 'all branches']
    backbone = [row.backbone_flops for row in costs]
    average = (backbone[0] + backbone[1] + 2 * backbone[2]) / 4
    assert dynamic.flops_ratio == pytest.approx((average + costs[0].predictor_flops) / backbone[0])
    assert everything.flops_ratio == pytest.approx((sum(backbone) + costs[0].predictor_flops) / backbone[0])
    assert [row.flops_ratio for row in held] == pytest.approx([row.fraction for row in costs])
    expected = PREDICTOR + (0.012 + 0.006 + 2 * 0.003) / 4
    assert dynamic.milliseconds == pytest.approx(1e3 * expected, rel=1e-6)
    assert [row.milliseconds for row in held] == pytest.approx([12, 6, 3], rel=1e-6)
    assert everything.milliseconds == pytest.approx(23, rel=1e-6)
    for row in result.timings:
        assert row.time_ratio == pytest.approx(row.milliseconds / held[0].milliseconds)
        assert row.images_per_second == pytest.approx(4e3 / row.milliseconds)
        assert row.p50 == pytest.approx(row.milliseconds)
        assert row.p50 <= row.p90 <= row.p99
        assert row.peak_memory is None or row.peak_memory > 1e6
    assert result.routing == 0  # it sets no clock forward


def test_sides_run_in_turn(engine, costs, images):
    bench_one(engine, mixed_batches(images(2), (0.5, 0.5, 0)), costs, repeats=3)
    round_ = ['predict', (0, 1), 0, 1, 2, 'predict', 0, 1, 2]
    log = [tuple(sorted(what)) if isinstance(what, list) else what for what, _ in engine.log]
    turn = ['predict', (0, 1), *round_]  # the first of an engine's turn is not timed
    assert log[1:] == round_ + turn * 4  # once for the memory, once to warm up, three times by the clock


def test_engines_run_in_turn(engine, costs, images):
    class Slower(Clockwork):
        def sleep(self, seconds):
            engine.now += 1.5 * seconds  # they share the clock
            turns.append('slow')

    def prepare(one):
        turns.append('prepare')
        return one

    turns = []
    sleep = engine.sleep
    engine.sleep = lambda seconds: (sleep(seconds), turns.append('fast'))
    found = bench(
        {'slow': lambda: prepare(Slower()), 'fast': lambda: prepare(engine)}, mixed_batches(images(2), (0.5, 0.5, 0)),
        costs, repeats=3)
    runs = 9  # of both models, in a round: 2 + 3 + 4
    for_memory = [name for one in ('slow', 'fast') for name in ['prepare', *[one] * (runs + 1)]]
    turn = runs + 2  # one more of the model itself at first
    assert turns == for_memory + (['slow'] * turn + ['fast'] * turn) * 4  # once to warm up
    assert list(found) == ['slow', 'fast']
    assert found['slow'].timings[0].milliseconds == pytest.approx(1.5 * found['fast'].timings[0].milliseconds)
    assert found['slow'].speedup == 1
    assert found['fast'].speedup == pytest.approx(1.5)
    for result in found.values():
        assert result.timings[2].time_ratio == pytest.approx(0.5)  # of its own time at the largest resolution


def test_memory_is_without_that_of_other_engines(engine, costs, images, monkeypatch):
    in_use = iter([100, 100, 130])  # at first, before the first engine, before the second
    peaks = iter([150] * 5 + [190] * 5)
    monkeypatch.setattr('timm_drnet.evaluate.bench.Path.write_text', lambda *args, **kwargs: None)
    monkeypatch.setattr(
        'timm_drnet.evaluate.bench._process_memory', lambda which: next(in_use if which == 'VmRSS' else peaks))
    found = bench({'a': lambda: engine, 'b': lambda: engine}, mixed_batches(images(2), (1, 0, 0)), costs, repeats=1)
    assert [{row.peak_memory for row in result.timings} for result in found.values()] == [{150}, {160}]


def test_weights_of_single_images(engine, costs, images):
    result = bench_one(engine, mixed_batches(images(1), (0.5, 0, 0.5)), costs, repeats=5)
    dynamic = result.timings[0]
    assert result.shares == (0.5, 0, 0.5)
    assert dynamic.milliseconds == pytest.approx(1e3 * PREDICTOR + (12 + 3) / 2, rel=1e-6)
    assert dynamic.p50 == pytest.approx(1e3 * PREDICTOR + 3, rel=1e-6)  # half of the images take no longer
    assert dynamic.p99 == pytest.approx(1e3 * PREDICTOR + 12, rel=1e-6)
    assert dynamic.flops_ratio == pytest.approx(
        (1 + costs[2].fraction) / 2 + costs[0].predictor_flops / costs[0].backbone_flops)


def test_without_predictor(engine, costs, images):
    batch = Batch(images(2), torch.tensor([0, 0]), 1.0)
    result = bench_one(engine, [batch], costs, repeats=1, with_predictor=False)
    assert 'predict' not in [what for what, _ in engine.log]
    assert result.timings[0].flops_ratio == 1


def test_a_cascade_pays_for_every_rung(engine, make_tiny, images):
    costs = timm_drnet.cost_table(make_tiny(router='cascade'))
    batch = Batch(images(8), torch.tensor([2, 0, 2, 2, 1, 0, 2, 2]), 1.0)
    result = bench_one(engine, [batch], costs, repeats=1, with_predictor=False, thresholds=(0.3, 0.7))
    assert engine.log[1:5] == [(2, 8), (1, 3), (0, 2), (0, 8)]  # 5 stop at the smallest, 1 goes no further than 48 px
    flops = [row.backbone_flops for row in costs]
    assert result.timings[0].flops_ratio == pytest.approx((8 * flops[2] + 3 * flops[1] + 2 * flops[0]) / (8 * flops[0]))
    assert result.timings[0].milliseconds == pytest.approx(1e3 * sum(MS.values()))


def test_machine_is_described():
    machine = describe_machine(torch.device('cpu'), 2)
    assert machine['threads'] == 2
    for package in ('torch', 'onnxruntime', 'openvino'):
        assert machine[package] == importlib.metadata.version(package)
    assert machine['processor']
