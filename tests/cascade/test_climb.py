"""Climbing: where images stop, what runs, and that everyone gets its own answer back."""

import pytest
import torch

from timm_drnet.cascade.climb import climb, confidence, rungs


def logits_of(probability, label, classes=4):
    """Logits whose softmax gives a label a probability, and the other classes the same share of the rest."""
    rest = torch.full((classes,), (1 - probability) / (classes - 1)).log()
    rest[label] = torch.tensor(probability).log()
    return rest


@pytest.fixture
def ladder():
    """Six images whose value is their number, the confidence of each at the candidates 0, 1, 2, and their run."""
    sure = torch.tensor([
        [0.9, 0.9, 0.9, 0.9, 0.9, 0.9],
        [0.5, 0.8, 0.4, 0.7, 0.9, 0.3],
        [0.9, 0.4, 0.6, 0.5, 0.3, 0.7],
    ])
    calls = []

    def run(j, part):
        numbers = part.flatten().long().tolist()
        calls.append((j, numbers))
        return torch.stack([logits_of(float(sure[j, n]), (n + j) % 4) for n in numbers])

    return torch.arange(6.0).view(6, 1, 1, 1), sure, run, calls


@pytest.mark.parametrize(('thresholds', 'stopped', 'ran'), [
    ((0.65, 0.65), [2, 1, 0, 1, 1, 2], [(2, [0, 1, 2, 3, 4, 5]), (1, [1, 2, 3, 4]), (0, [2])]),
    ((None, 0.65), [2, 0, 0, 0, 0, 2], [(2, [0, 1, 2, 3, 4, 5]), (0, [1, 2, 3, 4])]),
    ((0.65, None), [0, 1, 0, 1, 1, 0], [(1, [0, 1, 2, 3, 4, 5]), (0, [0, 2, 5])]),
    ((None, None), [0] * 6, [(0, [0, 1, 2, 3, 4, 5])]),
    ((0.0, 0.0), [2] * 6, [(2, [0, 1, 2, 3, 4, 5])]),
    ((1.1, 1.1), [0] * 6, [(2, [0, 1, 2, 3, 4, 5]), (1, [0, 1, 2, 3, 4, 5]), (0, [0, 1, 2, 3, 4, 5])]),
    ((0.85, 0.65), [2, 0, 0, 0, 1, 2], [(2, [0, 1, 2, 3, 4, 5]), (1, [1, 2, 3, 4]), (0, [1, 2, 3])]),
])
def test_images_stop_at_the_first_rung_that_is_sure(ladder, thresholds, stopped, ran):
    x, _, run, calls = ladder
    logits, where, counts = climb(x, thresholds, run)
    assert where.tolist() == stopped
    assert calls == ran
    assert counts == [next((len(numbers) for k, numbers in ran if k == j), 0) for j in range(3)]
    assert logits.argmax(dim=1).tolist() == [(n + j) % 4 for n, j in enumerate(stopped)]


def test_rungs_are_those_with_a_threshold():
    assert rungs((0.5, None, 0.7)) == [3, 1, 0]
    assert rungs(()) == [0]


def test_confidence_by_hand():
    logits = torch.tensor([[0.0, 0.0], [float('-inf'), 3.0]]).half()
    torch.testing.assert_close(confidence(logits), torch.tensor([0.5, 1.0]))
