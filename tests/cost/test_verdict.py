"""Whether a router pays: numbers worked out by hand, and a bootstrap that draws one image after the other."""

import numpy as np
import pytest
import torch

from timm_drnet.cost.verdict import judge, routing_warnings

SIDES, HELD, PAID = (96, 64), (100.0, 50.0), (150.0, 50.0)  # of a cascade


def make(n, knows, seed=0):
    """Images of which each is right at the large size; those that are wrong at the small one go on as often as known.

    Returns choices and what is right.
    """
    generator = torch.Generator().manual_seed(seed)
    easy = torch.rand(n, generator=generator) < 0.7
    known = torch.rand(n, generator=generator) < knows
    guess = torch.rand(n, generator=generator) < 0.7
    stops = torch.where(known, easy, guess)
    return stops.long(), torch.stack([torch.rand(n, generator=generator) < 0.9, easy], dim=1)


def test_comparisons_by_hand():
    choices = torch.tensor([1, 1, 1, 0])
    right = torch.tensor([[1, 1], [0, 1], [1, 1], [1, 0]]).bool()
    verdict = judge(choices, right, HELD, PAID, SIDES)
    # All right, for 75; held: 75 % at both sizes, so that the static line is flat.
    assert (verdict.static.top1, verdict.static.difference) == (75, 25)
    assert (verdict.lots.top1, verdict.lots.difference) == (75, 25)
    right[1:3, 1] = False  # now 50 % as routed, 75 % for 100 and 25 % for 50
    verdict = judge(choices, right, HELD, PAID, SIDES)
    assert (verdict.static.top1, verdict.static.difference) == (50, 0)
    assert verdict.lots.top1 == pytest.approx(0.25 * 75 + 0.75 * 25)
    assert verdict.lots.difference == pytest.approx(50 - verdict.lots.top1)


def test_interval_is_that_of_drawing_images_one_by_one():
    choices, right = make(60, knows=0.7)
    verdict = judge(choices, right, HELD, PAID, SIDES, seed=5)
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(3000):
        index = generator.integers(60, size=60)
        at, hits = choices.numpy()[index], right.numpy()[index]
        top1, held = hits[np.arange(60), at].mean(), hits.mean(axis=0)
        cost = np.where(at == 0, 150.0, 50.0).mean()
        part = min((cost - 50) / 50, 1)
        static = max(held[1], held[1] + part * (held[0] - held[1]), held[0] if cost >= 100 else 0)
        share = at.mean()
        drawn.append((top1 - static, top1 - share * held[1] - (1 - share) * held[0]))
    expected = 100 * np.percentile(drawn, [2.5, 97.5], axis=0)
    for one, column in ((verdict.static, 0), (verdict.lots, 1)):
        assert [one.low, one.high] == pytest.approx(expected[:, column].tolist(), abs=1.2)
    assert verdict == judge(choices, right, HELD, PAID, SIDES, seed=5)
    assert verdict != judge(choices, right, HELD, PAID, SIDES, seed=6)


@pytest.mark.parametrize(('knows', 'n', 'answer', 'warned'), [
    (1.0, 4000, 'The router pays in FLOPs: top-1 differs by +', False),
    (0.0, 4000, 'The router does not pay: top-1 differs by ', True),
    (0.15, 4000, 'The router does not pay, though it is better than lots: ', False),
    (0.3, 4000, 'These images do not show whether the router pays', False),
])
def test_the_answer(knows, n, answer, warned):
    verdict = judge(*make(n, knows), HELD, PAID, SIDES)
    assert verdict.sentence.startswith(answer), verdict
    assert verdict.sentence.count('% interval') == 2
    assert bool(verdict.warnings) == warned
    if warned:
        assert verdict.warnings == ('The router is no better than lots at the same shares, which need none.',)
        assert verdict.lots.low <= 0


def test_one_resolution_for_all():
    _, right = make(100, knows=0)
    verdict = judge(torch.zeros(100, dtype=torch.int64), right, HELD, HELD, SIDES)
    assert verdict.sentence == 'The router does not pay: one size for all images needs none.'
    assert verdict.warnings == ('100.0 % of the images take 96 px: hardly anything is routed.',)
    assert (verdict.lots.difference, verdict.lots.low, verdict.lots.high) == (0, 0, 0)


@pytest.mark.parametrize(('shares', 'expected'), [
    ((0.04, 0.96), ('96.0 % of the images take 64 px: hardly anything is routed.',)), ((0.95, 0.05), ())])
def test_warning_of_a_collapse(shares, expected):
    assert routing_warnings(SIDES, shares) == expected


def test_many_images_take_little_time_and_memory():
    choices, right = make(200_000, knows=0.9)
    verdict = judge(choices, right, HELD, PAID, SIDES)
    assert verdict.lots.high - verdict.lots.low < 0.5
