"""The straight-through Gumbel-softmax against Eq. 9 to 11 written out."""

import pytest
import torch
import torch.nn.functional as F

from timm_drnet.core.gumbel import gumbel_one_hot, one_hot


def noise(shape, seed):
    """The Gumbel noise that the next draw takes after the same seed, Eq. 10."""
    torch.manual_seed(seed)
    return -torch.empty(shape).exponential_().log()


@pytest.mark.parametrize('tau', [0.3, 1.0, 5.0])
def test_value_is_exactly_one_hot(tau):
    torch.manual_seed(0)
    h = gumbel_one_hot(torch.randn(1000, 3, requires_grad=True), tau)
    assert h.dtype == torch.float32
    assert torch.equal(h.unique(), torch.tensor([0.0, 1.0]))
    assert torch.equal(h.sum(dim=1), torch.ones(1000))


def test_draws_follow_the_softmax_of_the_scores():
    torch.manual_seed(0)
    n = 20_000
    scores = torch.tensor([1.0, 0.2, -0.7])
    p = scores.softmax(dim=0)
    counts = gumbel_one_hot(scores.expand(n, 3), 1.0).sum(dim=0)
    chi_square = ((counts - n * p) ** 2 / (n * p)).sum()
    assert chi_square < 9.21  # two degrees of freedom, 1 %


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_draw_is_that_of_equation_9_in_single_precision(dtype):
    scores = torch.randn(2000, 3).to(dtype)
    expected = (scores.float().log_softmax(dim=1) + noise(scores.shape, 3)).argmax(dim=1)
    torch.manual_seed(3)
    h = gumbel_one_hot(scores, 0.7)
    assert h.dtype == torch.float32
    assert torch.equal(h.argmax(dim=1), expected)


@pytest.mark.parametrize('tau', [0.5, 1.0, 3.0])
def test_gradient_is_that_of_equation_11(tau):
    scores = torch.randn(6, 3, dtype=torch.float32, requires_grad=True)
    upstream = torch.randn(6, 3)
    torch.manual_seed(4)
    gumbel_one_hot(scores, tau).backward(upstream)
    # d soft_j / d log p_k = soft_j (delta_jk - soft_k) / tau; the log-softmax in front changes nothing, since it
    # moves all scores of an image by the same amount
    soft = ((scores.detach().log_softmax(dim=1) + noise(scores.shape, 4)) / tau).softmax(dim=1)
    expected = soft * (upstream - (upstream * soft).sum(dim=1, keepdim=True)) / tau
    torch.testing.assert_close(scores.grad, expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_scores_give_finite_results_and_gradients(dtype):
    torch.manual_seed(0)
    scores = (20 * torch.randn(20_000, 3)).to(dtype).requires_grad_()
    h = gumbel_one_hot(scores, 1.0)
    assert torch.equal(h.sum(dim=1), torch.ones(len(h)))
    (h * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert scores.grad.dtype == dtype
    assert scores.grad.isfinite().all()


def test_smaller_temperature_gives_harder_gradients():
    def largest_soft(tau):
        scores = torch.zeros(200, 3, requires_grad=True)
        torch.manual_seed(0)
        gumbel_one_hot(scores, tau)[:, 0].sum().backward()
        return tau * scores.grad[:, 0]  # soft (1 - soft), which is small where the soft choice is nearly hard

    assert largest_soft(0.1).mean() < 0.5 * largest_soft(1.0).mean()
    assert (largest_soft(100.0) > 0.2).all()  # nearly uniform: 1/3 * 2/3


def test_one_hot_marks_the_largest_and_keeps_the_type():
    scores = torch.tensor([[0.1, 0.3, 0.2], [2.0, 1.0, -1.0]], dtype=torch.bfloat16)
    h = one_hot(scores)
    assert h.dtype == torch.bfloat16
    assert torch.equal(h, F.one_hot(torch.tensor([1, 0]), 3).to(torch.bfloat16))


def test_one_hot_breaks_ties_once():
    assert torch.equal(one_hot(torch.zeros(4, 3)).sum(dim=1), torch.ones(4))
