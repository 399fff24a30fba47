"""A cascade's dial against settings counted image by image, and against all that could have been chosen."""

import itertools

import pytest
import torch

from timm_drnet.cascade.dial import choose_thresholds, measure_setting, stop

COSTS = (4.0, 2.0, 1.0)


@pytest.fixture
def answers():
    """Confidence and agreement of 400 images at three candidates, the larger the more of both."""
    generator = torch.Generator().manual_seed(0)
    ease = torch.rand(400, 1, generator=generator)
    noise = torch.rand(400, 3, generator=generator)
    sure = (ease * torch.tensor([1.0, 0.95, 0.8]) + 0.2 * noise).clamp(max=1)
    agrees = torch.rand(400, 3, generator=generator) < sure * torch.tensor([1.0, 1.1, 0.9])
    agrees[:, 0] = True
    return sure, agrees


def counted(thresholds, sure, agrees):
    """Cost and agreement by climbing image by image."""
    cost = kept = 0
    for image, agree in zip(sure.tolist(), agrees.tolist(), strict=True):
        for j in (2, 1, 0):
            if j and thresholds[j - 1] is None:
                continue
            cost += COSTS[j]
            if j == 0 or image[j] >= thresholds[j - 1]:
                kept += agree[j]
                break
    return cost / len(sure), 100 * kept / len(sure)


@pytest.mark.parametrize('thresholds', [(0.5, 0.6), (None, 0.6), (0.5, None), (None, None), (0.0, 2.0)])
def test_setting_is_what_climbing_gives(answers, thresholds):
    found = measure_setting(thresholds, *answers, COSTS)
    assert (found.cost, found.agreement) == pytest.approx(counted(thresholds, *answers))
    where = stop(thresholds, answers[0])
    assert found.shares == pytest.approx([float((where == j).double().mean()) for j in range(3)])


@pytest.mark.parametrize('target', [1.5, 2.0, 3.0, 4.0])
def test_target_is_met_by_the_setting_that_agrees_most(answers, target):
    found = choose_thresholds(*answers, COSTS, target)
    assert found.cost == pytest.approx(target, rel=0.01)
    assert (found.cost, found.agreement) == pytest.approx(counted(found.thresholds, *answers))
    grid = [None, *torch.linspace(0, 1.05, 43).tolist()]
    others = (measure_setting(pair, *answers, COSTS) for pair in itertools.product(grid, grid))
    best = max(one.agreement for one in others if one.cost <= target * 1.01)
    assert found.agreement >= best - 2.5  # one standard error, by which two rungs have to be better than one


@pytest.mark.parametrize(('wrong', 'rungs'), [(1, 1), (40, 2)])
def test_of_settings_that_are_even_the_one_with_the_larger_rung_is_taken(wrong, rungs):
    """The smallest candidate is always right as far as it is asked; the middle one is wrong on some images."""
    sure = torch.rand(400, 3, generator=torch.Generator().manual_seed(0))
    agrees = torch.ones(400, 3, dtype=torch.bool)
    agrees[sure[:, 1].argsort(descending=True)[:wrong], 1] = False
    found = choose_thresholds(sure, agrees, COSTS, 3.0)
    assert [threshold is not None for threshold in found.thresholds] == [rungs == 1, rungs == 2]


def test_rung_that_knows_nothing_is_left_out(answers):
    sure, agrees = answers
    agrees = agrees.clone()
    agrees[:, 2] = torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.3
    assert choose_thresholds(sure, agrees, COSTS, 3.5).thresholds[1] is None


@pytest.mark.parametrize('target', [0.5, 9.0])
def test_target_out_of_reach_says_what_can_be_reached(answers, target):
    with pytest.raises(ValueError, match=rf'Invalid target {target:g}: on these 400 images .* from 1 to 4'):
        choose_thresholds(*answers, COSTS, target)


def test_largest_alone_is_taken_where_it_costs_no_more(answers):
    found = choose_thresholds(*answers, COSTS, 4.0)
    assert found.thresholds == (None, None)
    assert (found.cost, found.agreement) == (4.0, 100.0)


def test_images_that_are_all_as_sure_cannot_be_told_apart():
    sure, agrees = torch.ones(10, 2), torch.ones(10, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match='more images'):
        choose_thresholds(sure, agrees, (4.0, 1.0), 3.0)
