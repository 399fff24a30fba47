"""Every engine gives what the model gives, whatever pieces it cuts batches into."""

import time
from functools import partial

import pytest
import torch

from timm_drnet.deploy.engine_names import ENGINES
from timm_drnet.evaluate.engines import Pieces, exports_for, prepare_engine


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Graphs run by Python: not every machine has the C++ compiler that torch.compile needs to do better."""
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='eager'))
    yield
    torch.compiler.reset()


def test_engines_give_what_the_model_gives(make_tiny, shake, spread_choices, images):
    model, x = shake(make_tiny(resolutions=(64, 32))).eval(), images(7)
    choice = spread_choices(model, x)
    before = model.forward_at(x, 1)
    with torch.inference_mode(), exports_for(model, x) as exports:
        for name in ENGINES:
            gives_what_the_model_gives(prepare_engine(name, model, x, 1, exports), name, model, x, choice)
    assert torch.equal(model.forward_at(x, 1), before)
    assert model._compiled == {}


def gives_what_the_model_gives(engine, name, model, x, choice):
    assert tuple(engine.resolutions) == model.resolutions
    error = {'int8': 0.2, 'bf16': 0.05}.get(name.partition('-')[2], 1e-4)  # of the largest logit
    assert error > 0.1 or torch.equal(engine.predict_resolution(x), choice)
    for at in (choice, 0, 1):
        expected = model.forward_at(x, at)
        torch.testing.assert_close(engine.forward_at(x, at), expected, rtol=0, atol=error * expected.abs().max())


@pytest.mark.parametrize('size', [1, 2, 3, 7, 100])
def test_pieces_of_any_size(tiny, spread_choices, images, size):
    x = images(7)
    choice = spread_choices(tiny, x)
    pieces = Pieces(tiny, x[:1])
    pieces.predictor_piece, pieces.pieces = size, (size, 1, size)
    assert torch.equal(pieces.predict_resolution(x), choice)
    torch.testing.assert_close(pieces.forward_at(x, choice), tiny.forward_at(x, choice))
    torch.testing.assert_close(pieces.forward_at(x, 0), tiny.forward_at(x, 0))


def test_pieces_are_even_and_no_larger_than_the_best(tiny, images):
    pieces = Pieces(tiny, images(1))
    seen = []
    pieces.pieces = (4, 4, 4)
    forward_at = tiny.forward_at
    tiny.forward_at = lambda x, choice: seen.append(len(x)) or forward_at(x, choice)
    pieces.forward_at(images(11), 0)
    assert seen == [4, 4, 3]


def test_best_piece_is_the_fastest(images):
    """A model that takes its time for each image beyond the second in a call."""
    class Slow:
        resolutions = (64, 48)

        def predict_resolution(self, x):
            return self.forward_at(x, 0)

        def forward_at(self, x, choice):
            time.sleep(0.001 + 0.002 * max(0, len(x) - 2))
            return x.new_zeros(len(x), 5)

    pieces = Pieces(Slow(), images(8))
    assert pieces.pieces == (2, 2)
    assert pieces.predictor_piece == 2


def test_unknown_engine_and_unfit_data_type(tiny, images):
    with pytest.raises(ValueError, match="Unknown engine 'tensorrt': use one of 'eager'"):
        prepare_engine('tensorrt', tiny, images(1))
    with pytest.raises(ValueError, match='onnxruntime takes float32 images on the CPU'):
        prepare_engine('onnxruntime', tiny, images(1).bfloat16())
