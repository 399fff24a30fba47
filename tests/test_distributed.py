"""Two processes over gloo: the loss looks at all ranks, and no rank waits for a branch that another one skips."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.task import ClassificationTask

import timm_drnet

COSTS = [4.0, 2.5, 1.0]


def run(rank, function, path, queue):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    try:
        queue.put((rank, function(rank)))
    finally:
        dist.destroy_process_group()


def on_two_ranks(function, tmp_path):
    context = mp.get_context('spawn')
    queue = context.Queue()
    processes = [
        context.Process(target=run, args=(rank, function, tmp_path / 'store', queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    return results


def hinge(rank):
    """Rank 0 is above the target, rank 1 below, their average above it."""
    h = torch.eye(3)[[0, 0, 1] if rank == 0 else [1, 2, 1]].requires_grad_()
    loss = timm_drnet.flops_loss(h, COSTS, alpha=2.0)
    loss.backward()
    return loss.item(), h.grad.tolist()


def test_hinge_looks_at_the_average_of_all_ranks(tmp_path):
    results = on_two_ranks(hinge, tmp_path)
    average = ((4.0 + 4.0 + 2.5) / 3 + (2.5 + 1.0 + 2.5) / 3) / 2
    for rank in range(2):
        loss, grad = results[rank]
        assert loss == pytest.approx((average - 2.0) / 3.0)
        assert torch.tensor(grad) == pytest.approx(torch.tensor([COSTS] * 3) / 3 / 3.0)


def step(rank):
    """One step in which each rank sends all its images to a different resolution."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'resnet10t', resolutions=(64, 48, 32), num_classes=5, predictor='inverted_residual', alpha=1e-3).train()
    with torch.no_grad():
        model.predictor.classifier.bias.copy_(torch.eye(3)[rank] * 100)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False).prepare_distributed()
    with torch.no_grad():  # prepare_distributed copied rank 0's weights to all
        model.predictor.classifier.bias.copy_(torch.eye(3)[rank] * 100)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        x, target = torch.randn(4, 3, 64, 64, generator=generator), torch.randint(5, (4,), generator=generator)
        model.zero_grad()
        task(x, target)['loss'].backward()
    norms = model.backbone.bn1.norms
    return (
        [p.grad.double().sum().item() for p in model.parameters()],
        [norm.running_mean.abs().sum().item() for norm in norms],
    )


def test_ranks_that_choose_different_resolutions_agree_on_every_gradient(tmp_path):
    results = on_two_ranks(step, tmp_path)
    assert results[0][0] == results[1][0]
    assert results[0][1][0] > 0  # statistics of its own images only
    assert results[0][1][1] == results[0][1][2] == 0
    assert results[1][1][1] > 0
