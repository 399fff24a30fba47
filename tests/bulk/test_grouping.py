"""Full batches of each resolution, against the images one by one."""

from dataclasses import replace

import pytest
import torch

from timm_drnet.bulk.grouping import classify_grouped


class Spy:
    """A model that notes how many images each call was given."""

    def __init__(self, model):
        self.resolutions = model.resolutions
        self.num_classes = model.num_classes
        self.args = model.args
        self.predictor_calls = []
        self.branch_calls = [[] for _ in model.resolutions]
        self._model = model

    def predict_resolution(self, x):
        self.predictor_calls.append(len(x))
        return self._model.predict_resolution(x)

    def forward_at(self, x, choice):
        assert type(choice) is int
        self.branch_calls[choice].append(len(x))
        return self._model.forward_at(x, choice)


@pytest.mark.parametrize('batch_size', [1, 4, 7, 64])
@pytest.mark.parametrize('deployed', [False, True])
def test_every_image_gets_its_own_answer(tiny, images, spread_choices, batch_size, deployed):
    x = images(23)
    wanted = spread_choices(tiny, x)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    x, wanted = x[order], wanted[order]
    with torch.no_grad():
        expected = torch.cat([tiny.forward_at(image[None], int(j)) for image, j in zip(x, wanted, strict=True)])
    model = tiny.deploy(micro_batch=0) if deployed else tiny
    choices, logits = classify_grouped(model, iter(x), batch_size)
    assert choices.tolist() == wanted.tolist()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_branches_run_on_full_batches(tiny, images, spread_choices):
    x = images(23)
    wanted = spread_choices(tiny, x)
    assert wanted.bincount().tolist() == [8, 8, 7]
    spy = Spy(tiny)
    classify_grouped(spy, x, 4)
    assert spy.predictor_calls == [4, 4, 4, 4, 4, 3]
    assert spy.branch_calls == [[4, 4], [4, 4], [4, 3]]


def test_images_are_taken_when_there_is_room_for_them(tiny, images, spread_choices):
    x = images(60)
    spread_choices(tiny, x[:24])
    taken = 0

    class Watching(Spy):
        most = 0

        def predict_resolution(self, x):
            Watching.most = max(Watching.most, taken - sum(map(sum, self.branch_calls)))
            return super().predict_resolution(x)

    def stream():
        nonlocal taken
        for image in x:
            taken += 1
            yield image

    classify_grouped(Watching(tiny), stream(), 4)
    assert taken == 60
    assert Watching.most <= 4 + 3 * (4 - 1)


@pytest.mark.parametrize('batch_size', [1, 4, 64])
@pytest.mark.parametrize('left_out', [False, True])
def test_cascade(make_tiny, shake, images, batch_size, left_out):
    model = shake(make_tiny(router='cascade')).eval()
    x = images(23)
    with torch.no_grad():  # thresholds between those of two images, at which half of all stop
        sure = [model.forward_at(x, j).softmax(dim=1).amax(dim=1).sort().values[11:13].mean().item() for j in (1, 2)]
    model.args = replace(model.args, thresholds=(sure[0], None if left_out else sure[1]))
    with torch.no_grad():
        alone = [model.classify(image[None]) for image in x]
    stops = [int(choice) for _, choice in alone]
    assert set(stops) == ({0, 1} if left_out else {0, 1, 2})
    spy = Spy(model)
    choices, logits = classify_grouped(spy, x, batch_size)
    assert choices.tolist() == stops
    torch.testing.assert_close(logits, torch.cat([answer for answer, _ in alone]), rtol=1e-4, atol=1e-4)
    for calls in spy.branch_calls:
        assert all(number == batch_size for number in calls[:-1])
    assert sum(spy.branch_calls[1 if left_out else 2]) == 23  # each once at its first rung
    assert sum(spy.branch_calls[0]) == stops.count(0)


def test_scores_that_are_not_finite(tiny, images, spread_choices):
    x = images(6)
    wanted = spread_choices(tiny, x)
    wanted[4] = -1

    class Damaged(Spy):
        def predict_resolution(self, x):
            return wanted[:len(x)]

    choices, logits = classify_grouped(Damaged(tiny), x, 6)
    assert choices.tolist() == wanted.tolist()
    assert logits.isfinite().all(dim=1).tolist() == [True, True, True, True, False, True]
    wanted[:] = -1
    assert classify_grouped(Damaged(tiny), x, 6)[1].isnan().all()


def test_one_resolution_for_all(make_tiny, images):
    model = make_tiny(stage='pretrain').eval()
    x = images(5)
    choices, logits = classify_grouped(model, x, 2)
    assert choices.tolist() == [0] * 5
    with torch.no_grad():
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)
