"""A cascade's dial against settings counted image by image, and against all that could have been chosen."""

import itertools

import pytest
import torch

from timm_drnet.cost.thresholds import choose_thresholds, likelihood, measure_setting, stop

COSTS = (4.0, 2.0, 1.0)


@pytest.fixture
def answers():
    """Confidence of 400 images at three candidates, and how likely their answers are, the larger the more of both."""
    generator = torch.Generator().manual_seed(0)
    ease = torch.rand(400, 1, generator=generator)
    noise = torch.rand(400, 3, generator=generator)
    sure = (ease * torch.tensor([1.0, 0.95, 0.8]) + 0.2 * noise).clamp(max=1)
    likely = torch.rand(400, 3, generator=generator) < sure * torch.tensor([1.0, 1.1, 0.9])
    likely[:, 0] = True
    return sure, likely


def counted(thresholds, sure, likely):
    """Cost and what is expected by climbing image by image."""
    cost = kept = 0
    for image, value in zip(sure.tolist(), likely.tolist(), strict=True):
        for j in (2, 1, 0):
            if j and thresholds[j - 1] is None:
                continue
            cost += COSTS[j]
            if j == 0 or image[j] >= thresholds[j - 1]:
                kept += value[j]
                break
    return cost / len(sure), 100 * kept / len(sure)


@pytest.mark.parametrize('thresholds', [(0.5, 0.6), (None, 0.6), (0.5, None), (None, None), (0.0, 2.0)])
def test_setting_is_what_climbing_gives(answers, thresholds):
    found = measure_setting(thresholds, *answers, COSTS)
    assert (found.cost, found.expected) == pytest.approx(counted(thresholds, *answers))
    where = stop(thresholds, answers[0])
    assert found.shares == pytest.approx([float((where == j).double().mean()) for j in range(3)])


@pytest.mark.parametrize('target', [1.5, 2.0, 3.0, 4.0])
def test_target_is_met_by_the_setting_of_which_most_is_expected(answers, target):
    found = choose_thresholds(*answers, COSTS, target)
    assert found.cost == pytest.approx(target, rel=0.01)
    assert (found.cost, found.expected) == pytest.approx(counted(found.thresholds, *answers))
    grid = [None, *torch.linspace(0, 1.05, 43).tolist()]
    others = (measure_setting(pair, *answers, COSTS) for pair in itertools.product(grid, grid))
    best = max(one.expected for one in others if one.cost <= target * 1.01)
    assert found.expected >= best - 2.5  # one standard error, by which two rungs have to be better than one


def test_likelihood_is_the_largest_candidate_s_probability_of_each_answer():
    classes = torch.tensor([[[4, 2], [2, 4], [7, 4]]])  # of one image at three candidates, the two most probable
    probabilities = torch.tensor([[[0.6, 0.3], [0.9, 0.1], [0.8, 0.2]]])
    assert likelihood(classes, probabilities).tolist() == [[pytest.approx(0.6), pytest.approx(0.3), 0]]


@pytest.mark.parametrize(('doubt', 'rungs'), [(0.4, [True, False]), (1.0, [False, True])])
def test_other_answers_count_less_where_the_largest_is_in_doubt(doubt, rungs):
    """The middle rung answers otherwise on more images than the smallest; what counts is how sure the largest was."""
    sure = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    likely = torch.ones(400, 3)
    first, second = (sure[:, j].argsort(descending=True) for j in (1, 2))
    likely[first[:60], 1] = 1 - doubt  # 60 at the middle rung, each of which loses so much
    likely[second[:40], 2] = 0  # 40 at the smallest, of which the largest was certain
    found = choose_thresholds(sure, likely, COSTS, 3.0)
    assert [threshold is not None for threshold in found.thresholds] == rungs


@pytest.mark.parametrize(('images', 'rungs'), [(1, 1), (4, 2)])
def test_a_second_rung_has_to_be_worth_more_than_chance(images, rungs):
    """Two rungs have more ways to be lucky: what they gain by one image does not count."""
    sure = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    likely = torch.ones(400, 3)
    first, second = (sure[:, j].argsort(descending=True) for j in (1, 2))
    likely[second[200:200 + images], 2] = 0  # stop at the smallest alone, and go on where there are two
    kept = [i for i in second[:20].tolist() if i in set(first[:300].tolist())][:images]
    likely[kept, 1] = 0  # stop at the middle one alone, and before it where there are two
    found = choose_thresholds(sure, likely, COSTS, 2.5)
    assert sum(threshold is not None for threshold in found.thresholds) == rungs


@pytest.mark.parametrize(('wrong', 'rung'), [(1, 2), (2, 1)])
def test_another_rung_has_to_be_better_at_the_target_by_more_than_chance(wrong, rung):
    """At lower costs the smallest candidate is the better rung; at this one a few images tell."""
    sure = torch.linspace(0, 1, 200)[:, None].repeat(1, 3)
    likely = torch.full((200, 3), 0.9)
    likely[:50, 1], likely[:80, 2] = 0.2, 0.2
    likely[-wrong:, 2] = 0.4
    thresholds = choose_thresholds(sure, likely, (1.0, 0.7, 0.4), 0.99).thresholds
    assert [j for j, one in enumerate(thresholds, start=1) if one is not None] == [rung]


def test_the_rung_that_is_furthest_above_the_static_line_is_preferred():
    """At this target both set all right. Where fewer go on the smallest is below lots between the other two."""
    sure = torch.linspace(0, 1, 200)[:, None].repeat(1, 3)
    likely = torch.full((200, 3), 0.9)
    likely[:10, 1], likely[:110, 2] = 0.2, 0.2
    thresholds = choose_thresholds(sure, likely, (1.0, 0.7, 0.4), 0.99).thresholds
    assert [j for j, one in enumerate(thresholds, start=1) if one is not None] == [1]


def test_rung_that_knows_nothing_is_left_out(answers):
    sure, likely = answers
    likely = likely.clone()
    likely[:, 2] = torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.3
    assert choose_thresholds(sure, likely, COSTS, 3.5).thresholds[1] is None


@pytest.mark.parametrize('target', [0.5, 9.0])
def test_target_out_of_reach_says_what_can_be_reached(answers, target):
    with pytest.raises(ValueError, match=rf'Invalid target {target:g}: on these 400 images .* from 1 to 4'):
        choose_thresholds(*answers, COSTS, target)


def test_largest_alone_is_taken_where_it_costs_no_more(answers):
    found = choose_thresholds(*answers, COSTS, 4.0)
    assert found.thresholds == (None, None)
    assert (found.cost, found.expected) == (4.0, 100.0)


def test_images_that_are_all_as_sure_cannot_be_told_apart():
    sure, likely = torch.ones(10, 2), torch.ones(10, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match='more images'):
        choose_thresholds(sure, likely, (4.0, 1.0), 3.0)
