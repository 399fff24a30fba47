"""The two kinds of resolution predictor."""

import pytest
import torch

from timm_drnet.core.predictor import PREDICTOR_SIZES, create_predictor
from timm_drnet.cost.flops import count_flops


def count_parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_residual_predictor_has_the_size_of_the_paper():
    predictor = create_predictor('residual', 3)
    assert count_parameters(predictor) == 4_907_331
    assert f'{count_flops(predictor, 3, 128) / 1e6:.1f}' == '290.2'


def test_inverted_residual_predictor_is_tiny():
    predictor = create_predictor('inverted_residual', 3)
    assert 250_000 < count_parameters(predictor) < 350_000
    assert 5e6 < count_flops(predictor, 3, 64) <= 10e6


def test_sizes_are_those_of_the_paper():
    assert PREDICTOR_SIZES == {'residual': 128, 'inverted_residual': 64}


@pytest.mark.parametrize('kind', PREDICTOR_SIZES)
@pytest.mark.parametrize(('outputs', 'channels'), [(2, 3), (5, 1)])
def test_predictor_scores_each_candidate(kind, outputs, channels):
    predictor = create_predictor(kind, outputs, in_chans=channels).eval()
    assert predictor(torch.randn(4, channels, 64, 64)).shape == (4, outputs)


@pytest.mark.parametrize('kind', PREDICTOR_SIZES)
def test_predictor_takes_device_and_dtype(kind):
    predictor = create_predictor(kind, 3, device='meta', dtype=torch.bfloat16)
    floating = [t for t in predictor.state_dict().values() if t.is_floating_point()]
    assert {(t.device.type, t.dtype) for t in floating} == {('meta', torch.bfloat16)}


@pytest.mark.parametrize('kind', PREDICTOR_SIZES)
def test_new_predictor_leaves_the_choice_open(kind):
    torch.manual_seed(0)
    predictor = create_predictor(kind, 3).train()
    probabilities = predictor(torch.randn(16, 3, 64, 64)).softmax(dim=1).mean(dim=0)
    assert probabilities.min() > 0.1


def test_unknown_predictor_is_refused_by_name():
    with pytest.raises(ValueError, match="Invalid predictor 'vit'.*'residual', 'inverted_residual'"):
        create_predictor('vit', 3)
