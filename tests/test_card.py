"""The card's experiment: crops, splits and comparisons, against what can be told beforehand."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples' / 'reproduce'))

import train_on_card
from card import advice, compare, page
from card.answers import kept
from card.images import on_device, pack, unpack
from card.limit import expected_scores
from card.rows import Chain, finished
from card.stages import Setting, rate
from PIL import Image

from timm_drnet.cost.costs import Costs
from timm_drnet.train import loss

COSTS = (4.0, 2.0, 1.0)


def answers(hits, sure):
    hits = torch.tensor(hits, dtype=torch.float64)
    classes = torch.where(hits > 0, 0, 1)
    return compare.Answers(hits, torch.tensor(sure, dtype=torch.float64), classes)


def test_split_uses_every_image_once_and_every_class_alike():
    labels = np.repeat(np.arange(4), 100)
    parts = train_on_card.split(labels)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(400))
    for name, each in (('train', 90), ('predictor', 8), ('dial', 2)):
        assert np.bincount(labels[parts[name]]).tolist() == [each] * 4


def test_rate_is_constant_and_then_falls():
    setting = Setting(epochs=8, cooldown=2)
    assert [rate(setting, e) for e in (0, 0.5, 1, 5.9, 6, 7, 8)] == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])


@pytest.fixture
def images():
    """Sixty-four images of four classes, by their use."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    everything = on_device(pixels, np.arange(64) % 4, torch.device('cpu'))
    return dict.fromkeys(('train', 'predictor', 'dial', 'val'), everything)


def test_interrupted_row_goes_on_after_its_last_epoch(images, tmp_path):
    """As if it had not been interrupted; and what is finished is not trained again."""
    setting = Setting(epochs=3, cooldown=1, batch=16, width=0.125)
    answers = []
    for name, interrupted in (('whole', False), ('parts', True)):
        told = []
        chain = Chain('static', 0, images, setting, tmp_path / name, ['static-32'])
        chain.output.mkdir()
        chain.tell = told.append
        if interrupted:
            chain.tell = lambda text: (_ for _ in ()).throw(InterruptedError) if 'epoch 2' in text else None
            with pytest.raises(InterruptedError):
                chain.run()
            assert finished(chain.output) == {}
            assert [path.suffix for path in chain.output.iterdir()] == ['.checkpoint']
            chain.setting = replace(setting, epochs=4)
            with pytest.raises(ValueError, match="'epochs': 3.* not .*'epochs': 4"):
                chain.run()
            chain.setting, chain.tell = setting, told.append
        chain.run()
        assert told[0].startswith('static-32: goes on after epoch 1' if interrupted else 'static-32: epoch 1 of 3')
        assert sorted(path.name for path in chain.output.iterdir()) == ['rows.jsonl', 'static-32-seed0.npz']
        assert list(finished(chain.output)) == [('static-32', 0)]
        told.clear()
        chain.run()
        assert told == []
        with np.load(chain.output / 'static-32-seed0.npz') as arrays:
            answers.append(arrays['val_log_p'])
    assert np.array_equal(*answers)


def test_temperature_falls_evenly_from_epoch_to_epoch(images, tmp_path, monkeypatch):
    seen, utility_loss = [], loss.utility_loss

    def seeing(p, losses, costs, alpha, tau):
        seen.append(tau)
        return utility_loss(p, losses, costs, alpha, tau)

    monkeypatch.setattr(loss, 'utility_loss', seeing)
    setting = Setting(epochs=1, cooldown=1, batch=16, width=0.25)
    Chain('teacher', 0, images, setting, tmp_path).run()
    Chain('distilled', 0, images, setting, tmp_path).predictors(['features'], 'held', 3, (1.0, 0.25))
    assert seen == pytest.approx([1, 0.5, 0.25])  # 64 images are one batch
    assert list(finished(tmp_path)) == [('teacher', 0), ('alone-held-features-tau1-0.25', 0)]


def test_epochs_fit_the_seconds():
    step_seconds = {'distilled': 0.1, 'static': 0.01, 'paper': 0}
    assert train_on_card.epochs_in(300, step_seconds, 80) == 24  # 0.85 * 300 / (80 * 0.13) = 24.5
    assert train_on_card.epochs_in(3000, step_seconds, 80) == 40


def test_packed_images_come_back_in_order(tmp_path):
    """Each image has a grey of its own, which survives the compression."""
    if 'AVIF' not in Image.registered_extensions().values():
        pytest.skip('this Pillow does not write AVIF')
    for split in ('train', 'val'):
        for label in range(2):
            folder = tmp_path / 'images' / split / f'class{label}'
            folder.mkdir(parents=True)
            for i in range(3):
                Image.new('RGB', (64, 64), (100 * label + 20 * i,) * 3).save(folder / f'{i}.png')
    pack(tmp_path / 'images', tmp_path / 'packed', quality=90)
    pixels, labels = unpack(tmp_path / 'packed', 'train')
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert pixels.shape == (6, 64, 64, 3)
    assert np.abs(pixels.mean(axis=(1, 2, 3)) - [0, 20, 40, 100, 120, 140]).max() < 3


def test_crops_keep_a_ramp_a_ramp():
    """A crop of a horizontal ramp is a horizontal ramp, steeper or not, to the right or, flipped, to the left."""
    ramp = np.broadcast_to(np.linspace(0, 252, 64).astype(np.uint8)[None, None, :, None], (200, 64, 64, 3))
    images = on_device(ramp, np.zeros(200, np.int64), torch.device('cpu'))
    x = torch.cat([x for x, _ in images.batches(50, torch.Generator().manual_seed(0))])
    assert x.shape == (200, 3, 64, 64)
    assert (x[:, :, :1] - x).abs().max() < 0.05  # rows are alike
    slopes = (x[:, 0, 0, 48] - x[:, 0, 0, 16]) / ((252 / 63 * 32) / 255 / 0.229)
    assert 0.35 < (slopes > 0).double().mean() < 0.65
    assert 0.5 < slopes.abs().min() < slopes.abs().max() < 1.02
    plain = next(images.batches(200))[0]
    assert plain[0, 0, 0, 63].item() == pytest.approx((252 / 255 - 0.485) / 0.229, abs=1e-5)


def test_line_is_the_best_mixture_for_the_cost():
    hits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert compare.line(hits, COSTS, 2.0).mean() == 0.5
    assert compare.line(hits, COSTS, 3.0).mean() == pytest.approx(0.625)  # half at 4, half at 2
    assert compare.line(hits, COSTS, 1.0).mean() == 0.25
    assert compare.line(torch.flip(hits, (1,)), COSTS, 4.0).mean() == 0.75  # the cheapest is the best


def test_oracle_spends_on_what_the_cheap_resolutions_get_wrong():
    one = answers([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], np.ones((4, 3)))
    assert [compare.oracle(one, COSTS, at) for at in (1.0, 1.25, 1.99, 2.0)] == [25, 50, 50, 75]


def test_routers_pay_for_what_ran():
    """Images sure at 32 px stop there; the others run at 64 px, too."""
    val = answers([[1, 1, 0], [1, 1, 1]] * 50, [[0.9, 0.5, 0.3], [0.9, 0.7, 0.8]] * 50)
    routed = compare.cascade(val, val, COSTS, target=3.0)
    assert routed.cost == pytest.approx(3.0)
    assert routed.shares == (0.5, 0.0, 0.5)
    assert routed.hits.mean() == 1
    assert compare.lots(routed, val).mean() == 0.75
    assert compare.cascade(val, val, COSTS, target=9.0) is None
    two = compare.cascade(val.largest(2), val.largest(2), (4.0, 1.0), target=3.0)
    assert (two.cost, two.shares) == (3.0, (0.5, 0.5))
    assert compare.lots(two, val).mean() == 1  # right at both sizes

    scores = torch.tensor([[2.0, 0.0, 1.0], [2.0, 0.0, 1.5]] * 50)
    costs = Costs('GFLOPs', COSTS, 0.5)
    assert compare.predicted(scores, scores, val, costs, None).cost == 4.5
    routed = compare.predicted(scores, scores, val, costs, 3.0)
    assert (routed.cost, routed.shares) == (3.0, (0.5, 0.0, 0.5))


def test_agreement_counts_answers_and_likelihood_weighs_them(tmp_path):
    """The smallest resolution answers one of two images as 64 px do, and the other with what these give 30 %."""
    largest, smallest = torch.tensor([[0.7, 0.3], [0.7, 0.3]]).log(), torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
    np.savez(tmp_path / 'row.npz', **kept('val', torch.stack([largest, smallest], dim=1), torch.zeros(2).long()))
    for count_agreement, likely in ((False, [[0.7, 0.7], [0.7, 0.3]]), (True, [[1, 1], [1, 0]])):
        found = compare.read_answers(tmp_path / 'row.npz', 'val', count_agreement)
        assert found.likely.numpy() == pytest.approx(np.array(likely), abs=1e-3)
        assert found.hits.tolist() == [[1, 1], [1, 0]]


def test_an_answer_that_is_seen_tells_where_an_image_is_right(tmp_path):
    """At 32 px, the last, half of the images are in doubt and wrong; all are right at the others."""
    labels = torch.arange(400) % 20
    doubt = torch.arange(400) // 20 % 2 == 1
    right = 5.0 * torch.nn.functional.one_hot(labels, 20)
    wrong = 2.0 * torch.nn.functional.one_hot((labels + 1) % 20, 20)
    noise = 0.1 * torch.randn(3, 400, 20, generator=torch.Generator().manual_seed(0))
    logits = torch.stack([right, right, torch.where(doubt[:, None], wrong, right)]) + noise
    np.savez(tmp_path / 'row.npz', **kept('val', logits.transpose(0, 1), labels))
    scores = expected_scores(tmp_path / 'row.npz', [2])
    assert scores.shape == (400, 3)
    assert ((scores[:, 0] - scores[:, 2] > 0.5) == doubt).all()
    nothing = expected_scores(tmp_path / 'row.npz', [0])[:, 2]  # 64 px answer all alike
    assert abs(nothing[doubt].mean() - nothing[~doubt].mean()) < 0.05


def test_interval_of_a_difference():
    above, below = torch.zeros(400, dtype=torch.float64), torch.zeros(400, dtype=torch.float64)
    above[:40] = 1.0
    one = compare.difference([above, above], [below, above])
    assert one.seeds == (10.0, 0.0)
    assert one.mean == pytest.approx(5.0)
    error = 1.96 * np.std([0.5] * 40 + [0] * 360, ddof=1) / 20 * 100
    assert (one.low, one.high) == pytest.approx((5 - error, 5 + error))


def test_what_the_page_calls_held_and_best():
    def one(low, *seeds):
        return {'0.7': {'lots': {'low': low, 'seeds': seeds}}}

    assert [advice._verdict(each['0.7']['lots']) for each in (one(0.1, 1, 2), one(0.1, 1, -1), one(-0.1, 1, 2))] == [
        'held', 'did not hold', 'did not hold']
    routers = {'cascade': one(9), 'utility': one(-1), 'expected': one(1), 'paper': {'as trained': {}}}
    assert page.best_predictor({'routers': routers}) == ('expected', one(1)['0.7'])
