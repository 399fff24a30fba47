"""Routing: order, which branches run, how often the host waits for the device, and the twin without control flow."""

import threading

import pytest
import torch

from timm_drnet.core.routing import check_choices, route


def tag(index, x):
    """A run that shows the image and the candidate: (images, 2)."""
    return torch.stack([x[:, 0, 0, 0], torch.full((len(x),), float(index))], dim=1)


@pytest.mark.parametrize('n', [1, 2, 5, 64])
@pytest.mark.parametrize('candidates', [1, 2, 3, 7])
def test_results_come_back_in_order(n, candidates):
    for _ in range(5):
        x = torch.randn(n, 3, 2, 2)
        choice = torch.randint(candidates, (n,))
        output, counts = route(x, choice, candidates, tag)
        assert torch.equal(output, torch.stack([x[:, 0, 0, 0], choice.float()], dim=1))
        assert counts == [int((choice == j).sum()) for j in range(candidates)]


def test_each_branch_runs_once_on_its_images_in_their_order():
    x = torch.arange(6.0).view(6, 1, 1, 1)
    ran = []
    route(x, torch.tensor([2, 0, 2, 0, 2, 2]), 4, lambda j, part: (ran.append((j, part.flatten().tolist())), part)[1])
    assert ran == [(0, [1, 3]), (2, [0, 2, 4, 5])]


def test_single_choice_passes_the_batch_itself():
    x = torch.randn(4, 3, 2, 2)
    ran = []

    def run(index, part):
        ran.append((index, part))
        return part

    output, counts = route(x, torch.full((4,), 1), 3, run)
    assert output is x
    assert counts == [0, 4, 0]
    assert len(ran) == 1
    assert ran[0][0] == 1
    assert ran[0][1] is x


@pytest.mark.parametrize(('choice', 'elsewhere', 'ran'), [
    ([0, 2, 2, 0], [0, 1, 0], {0: 2, 1: 0, 2: 2}),
    ([0, 2, 2, 0], [4, 0, 0], {0: 2, 2: 2}),  # what nobody has runs nowhere
    ([1, 1, 1, 1], [0, 0, 3], {1: 4, 2: 0}),
    ([1, 1, 1, 1], [0, 2, 0], {1: 4}),
])
def test_branches_that_another_rank_needs_run_with_no_images(choice, elsewhere, ran, monkeypatch):
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda counts: counts.add_(torch.tensor(elsewhere)))
    x = torch.randn(4, 3, 2, 2)
    sizes = {}

    def run(index, part):
        sizes[index] = len(part)
        return tag(index, part)

    output, counts = route(x, torch.tensor(choice), 3, run, on_all_ranks=True)
    assert sizes == ran
    assert counts == [choice.count(j) for j in range(3)]
    assert torch.equal(output[:, 1], torch.tensor(choice).float())


@pytest.mark.parametrize(('choice', 'invalid'), [([0, 3, 1], 3), ([0, -1, 1], -1), ([7, 7, 7], 7)])
def test_choice_out_of_range_is_refused(choice, invalid):
    with pytest.raises(ValueError, match=f'Invalid choice {invalid}: there are 3 candidates'):
        route(torch.randn(3, 1, 2, 2), torch.tensor(choice), 3, tag)


def test_outputs_of_different_shape_are_explained():
    def run(index, x):
        return x[..., index:]

    with pytest.raises(ValueError, match='without global pooling use model.forward_features'):
        route(torch.randn(2, 3, 4, 4), torch.tensor([0, 1]), 2, run)


def test_gradients_reach_each_image():
    x = torch.randn(5, 1, 1, 1, requires_grad=True)
    choice = torch.tensor([1, 0, 2, 1, 0])
    output, _ = route(x, choice, 3, lambda j, part: part.flatten(1) * (j + 1))
    output.sum().backward()
    assert torch.equal(x.grad.flatten(), (choice + 1).float())


@pytest.mark.parametrize('choice', [[1, 0, 2, 1, 0], [1, 1, 1, 1, 1]])
def test_routing_waits_for_the_device_once(waits, choice):
    x, choice = torch.randn(5, 3, 4, 4), torch.tensor(choice)
    with waits:
        route(x, choice, 3, lambda j, part: part.mean(dim=(2, 3)))
    assert waits.seen == {'tolist': 1}


@pytest.mark.parametrize('training', [True, False])
def test_model_waits_for_the_device_once(waits, make_tiny, spread_choices, images, training):
    model = make_tiny().train(training)
    x = images(8)
    spread_choices(model, x)
    waits.seen.clear()
    with waits:
        model(x)
    assert waits.seen == {'tolist': 1}


def test_forward_at_waits_for_the_device_once(waits, tiny, images):
    choice = torch.tensor([0, 2, 1, 0])
    with waits:
        tiny.forward_at(images(4), choice)
    assert waits.seen == {'tolist': 1}


def test_choices_follow_the_images_to_their_device():
    choices = check_choices(torch.tensor([0, 1]), torch.empty(2, 3, 4, 4, device='meta'))
    assert choices.device.type == 'meta'


def test_threads_get_the_results_of_one(tiny, spread_choices, images):
    x = images(48)
    spread_choices(tiny, x)
    batches = [x[i:i + 6] for i in range(0, 48, 6)]
    with torch.no_grad():
        expected = [tiny(batch) for batch in batches]
    results = [[] for _ in batches]
    start = threading.Barrier(len(batches))

    def work(i):
        start.wait()
        with torch.no_grad():
            for _ in range(5):
                results[i].append(tiny(batches[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for runs, one in zip(results, expected, strict=True):
        assert len(runs) == 5
        for run in runs:
            assert torch.equal(run, one)
