"""The static line, held against trying every pair of resolutions."""

import itertools

import pytest
import torch

from timm_drnet.cost.static_line import CurvePoint, static_accuracy, static_line


@pytest.mark.parametrize(('held', 'corners'), [
    ([(4, 80), (3, 78), (2, 70), (1, 50)], [(1, 50), (2, 70), (3, 78), (4, 80)]),
    ([(4, 80), (3, 70), (2, 70), (1, 50)], [(1, 50), (2, 70), (4, 80)]),
    ([(4, 80), (3, 60), (2, 65), (1, 60)], [(1, 60), (4, 80)]),
    ([(4, 70), (3, 80), (2, 80), (1, 50)], [(1, 50), (2, 80)]),
    ([(1, 50)], [(1, 50)]),
    ([(4, 80), (3, 70), (2, 60)], [(2, 60), (4, 80)]),
])
def test_corners(held, corners):
    points = [CurvePoint(gflops, top1, f'{gflops} px') for gflops, top1 in held]
    assert static_line(points) == tuple(CurvePoint(gflops, top1, f'{gflops} px') for gflops, top1 in corners)


@pytest.mark.parametrize('seed', range(5))
def test_accuracy_is_that_of_the_best_way_to_deal(seed):
    generator = torch.Generator().manual_seed(seed)
    costs = torch.rand(4, generator=generator, dtype=torch.float64).sort(descending=True).values + 0.1
    held = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    at = costs.min() + (costs.max() - costs.min() + 0.1) * torch.rand(3, generator=generator, dtype=torch.float64)
    found = static_accuracy(costs, held, at)
    share = torch.linspace(0, 1, 2001).double()
    for i in range(3):
        best = max(
            float((share * held[i, a] + (1 - share) * held[i, b])[share * costs[a] + (1 - share) * costs[b] <= at[i]]
                  .amax(dim=0)) for a, b in itertools.product(range(4), repeat=2) if min(costs[a], costs[b]) <= at[i])
        assert best - 1e-12 <= float(found[i]) <= best + 1e-3


def test_where_the_line_ends():
    costs, held = torch.tensor([2.0, 1.0], dtype=torch.float64), torch.tensor([[80.0, 60.0]], dtype=torch.float64)
    for at, expected in ((0.9, 60), (1, 60), (1.5, 70), (2, 80), (2.3, 80)):
        assert static_accuracy(costs, held, torch.tensor([at], dtype=torch.float64)).tolist() == [expected]
