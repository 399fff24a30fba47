"""Full batches of each resolution, against the images one by one."""

import pytest
import torch

from timm_drnet.bulk.grouping import classify_grouped


class Spy:
    """A model that notes how many images each call was given."""

    def __init__(self, model):
        self.resolutions = model.resolutions
        self.num_classes = model.num_classes
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


def test_one_resolution_for_all(make_tiny, images):
    model = make_tiny(stage='pretrain').eval()
    x = images(5)
    choices, logits = classify_grouped(model, x, 2)
    assert choices.tolist() == [0] * 5
    with torch.no_grad():
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)
