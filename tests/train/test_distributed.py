"""Data-parallel training over gloo, held against one process that has all the images.

Ranks get their images from one batch of twelve. Which resolution an image draws is settled by the noise, so it is the
same however the batch is divided. The weights are in double precision, the choice itself is not: what differs by more
than a millionth is a mistake, and no rounding.
"""

import copy
import functools
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from processes import on_ranks
from sync_norms_on_cpu import allow_sync_norms_on_cpu
from timm.layers import convert_sync_batchnorm
from timm.task import ClassificationTask
from timm.utils import distribute_bn
from torch import nn

import timm_drnet

IMAGES = 12
COSTS = [4.0, 2.5, 1.0]
DRAWN = {
    'mixed': [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 2, 2],
    'own': [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2],  # each of three ranks has a resolution to itself
    'two': [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1],  # the smallest is drawn nowhere
}


def make_task(**kwargs):
    """A DRNet in double precision, its norms all different, in training."""
    return ClassificationTask(copy.deepcopy(make_model(**kwargs)), nn.CrossEntropyLoss(), verbose=False)


@functools.cache
def make_model(**kwargs):
    """The model, which is made once in a process: counting its FLOPs takes longer than a step."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), num_classes=5, predictor='inverted_residual', predictor_size=32,
        **{'eta': 3.0, **kwargs})
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (norm.bias, norm.running_mean):
                nn.init.normal_(tensor, 0, 0.2)
    timm_drnet.cost_table(model.double())
    return model.train()


def freeze_norms(model):
    """Each rank takes statistics of its own images; leave that out of a comparison."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()


def settle_draws(drawn, images):
    """Put noise that decides what given images draw, one after the other, in the place of the random one."""
    generator = torch.Generator().manual_seed(1)
    noise = 4 * F.one_hot(torch.tensor(drawn), 3) + torch.rand(len(drawn), 3, generator=generator)
    rows = iter(noise[images])

    def gumbel_softmax(logits, tau, hard, dim):
        mine = torch.stack([next(rows) for _ in logits]).to(logits.device)
        return ((logits + mine) / tau).softmax(dim)

    F.gumbel_softmax = gumbel_softmax


def divide(pieces, world_size, rank):
    """A rank's images of every piece of the batch."""
    return [piece.chunk(world_size)[rank] for piece in torch.arange(IMAGES).chunk(pieces)]


def gradients(rank, world_size, case):
    """Losses and gradients of one update, and the norms' statistics after it."""
    torch.set_num_threads(1)
    kwargs = {'alpha': case.get('alpha', flops_target()), **case.get('kwargs', {})}
    task = make_task(**kwargs)
    model = task.trainable_module
    if case.get('sync'):
        if world_size > 1:
            allow_sync_norms_on_cpu()
            task.trainable_module = convert_sync_batchnorm(model)
    else:
        freeze_norms(model)
    if case.get('checkpointing'):
        model.set_grad_checkpointing(True)
    if case.get('compile'):
        task.compile(backend='aot_eager')
    if world_size > 1:
        task.prepare_distributed()

    pieces = divide(case.get('pieces', 1), world_size, rank)
    settle_draws(DRAWN[case.get('drawn', 'mixed')], torch.cat(pieces))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(IMAGES, 3, 64, 64, generator=generator, dtype=torch.double)
    target = torch.randint(5, (IMAGES,), generator=generator)
    losses = []
    for i, piece in enumerate(pieces):
        def step(piece=piece):
            loss = task(x[piece], target[piece])['loss'] / len(pieces)
            loss.backward()
            losses.append(loss.detach())

        if i < len(pieces) - 1:  # as train.py does with --grad-accum-steps
            with task.no_sync():
                step()
        else:
            step()
    return (
        torch.stack(losses),
        {name: p.grad for name, p in model.named_parameters()},
        {name: b for name, b in model.named_buffers() if name.endswith(('running_mean', 'running_var'))},
    )


def all_costs():
    """GFLOPs of test_resnet at the three resolutions."""
    return [row.backbone_flops / 1e9 for row in timm_drnet.cost_table(make_model())]


def flops_target():
    """Below the average of all draws, so that their loss has a gradient; above that of a rank with the smallest."""
    return 0.7 * all_costs()[1]


CASES = {
    'joint': {},
    'each rank its own resolution': {'drawn': 'own'},
    'a resolution that nobody has': {'drawn': 'two'},
    'accumulation': {'pieces': 2},
    'accumulation, each rank its own resolution': {'pieces': 2, 'drawn': 'own'},
    'checkpointing': {'checkpointing': True, 'drawn': 'own'},
    'at all resolutions': {'kwargs': {'joint_resolutions': 'all'}},
    'at all resolutions, accumulation': {'kwargs': {'joint_resolutions': 'all'}, 'pieces': 2},
    'pretrain': {'kwargs': {'stage': 'pretrain'}},
    'pretrain, checkpointing': {'kwargs': {'stage': 'pretrain'}, 'checkpointing': True},
    'shared norms': {'kwargs': {'resolution_aware_norm': False}, 'drawn': 'own'},
    'compiled': {'compile': True, 'drawn': 'own'},
    'sync-bn': {'sync': True},
    'sync-bn, each rank its own resolution': {'sync': True, 'drawn': 'own'},
    'sync-bn, a resolution that nobody has': {'sync': True, 'drawn': 'two'},
    'sync-bn, at all resolutions': {'sync': True, 'kwargs': {'joint_resolutions': 'all'}},
    'sync-bn, pretrain': {'sync': True, 'kwargs': {'stage': 'pretrain'}},
}


# Each kind of step once; the others run with the slow tests.
QUICK = (
    'accumulation, each rank its own resolution', 'checkpointing', 'at all resolutions, accumulation', 'pretrain',
    'shared norms', 'sync-bn', 'sync-bn, a resolution that nobody has')


def all_gradients(rank, world_size, names):
    """`gradients` of cases, in processes that live on: those of torch.compile and of SyncBatchNorm come last."""
    return {name: gradients(rank, world_size, CASES[name]) for name in names}


def run_cases(names, folder):
    """What one process gets, and what each of three gets."""
    [alone], together = (on_ranks(all_gradients, ranks, folder / str(ranks), names) for ranks in (1, 3))
    return alone, together


def assert_same_gradients(case, alone, together):
    """All ranks have the gradients of one process, to the last bit of each other, and its loss on average."""
    alone, ranks = alone[case], [rank[case] for rank in together]
    say = f'{case}: {{}}'.format
    torch.testing.assert_close(torch.stack([losses for losses, _, _ in ranks]).mean(dim=0), alone[0], msg=say)
    for _, grads, _ in ranks:
        assert grads.keys() == alone[1].keys(), case
        for parameter, grad in alone[1].items():
            if grad is None:  # the pretrain stage does not train the predictor
                assert parameter.startswith('predictor.'), case
                assert grads[parameter] is None, case
            else:
                assert torch.equal(grads[parameter], ranks[0][1][parameter]), case
                torch.testing.assert_close(
                    grads[parameter], grad, rtol=1e-5, atol=1e-6, msg=f'{case}, {parameter}: {{}}'.format)
    if CASES[case].get('sync'):
        for rank in ranks:
            torch.testing.assert_close(rank[2], alone[2], msg=say)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Of the quick cases."""
    return run_cases(QUICK, tmp_path_factory.mktemp('ranks'))


@pytest.mark.parametrize('name', QUICK)
def test_gradients_are_those_of_one_process(name, results):
    assert_same_gradients(name, *results)


@pytest.mark.slow
def test_gradients_of_the_other_cases(tmp_path):
    names = [name for name in CASES if name not in QUICK]  # by one start of the processes
    results = run_cases(names, tmp_path)
    for name in names:
        assert_same_gradients(name, *results)


def test_draws_leave_the_target_between_the_ranks():
    """Or the tests above could not tell the average of all ranks from that of one."""
    alpha, costs = flops_target(), all_costs()
    spent = [sum(costs[j] for j in DRAWN['own'][4 * rank:4 * rank + 4]) / 4 for rank in range(3)]
    assert spent[0] > alpha > spent[2]
    assert all(sum(costs[j] for j in drawn) / IMAGES > alpha for drawn in DRAWN.values())


def hinge(rank, world_size):
    """Rank 0 is above the target, rank 1 below, their average above it."""
    h = torch.eye(3)[[0, 0, 1] if rank == 0 else [1, 2, 1]].requires_grad_()
    loss = timm_drnet.flops_loss(h, COSTS, alpha=2.0)
    loss.backward()
    return loss.item(), h.grad


def test_hinge_looks_at_the_average_of_all_ranks(tmp_path):
    average = ((4.0 + 4.0 + 2.5) / 3 + (2.5 + 1.0 + 2.5) / 3) / 2
    for loss, grad in on_ranks(hinge, 2, tmp_path):
        assert loss == pytest.approx((average - 2.0) / 3.0)
        assert torch.allclose(grad, torch.tensor([COSTS] * 3) / 3 / 3.0)


def measuring(rank, world_size):
    """The costs that a rank trains by, and how often it measured some, which differ from those of the others."""
    calls = []

    def latency_table(model):
        calls.append(rank)
        return [SimpleNamespace(backbone_ms=(10.0 + rank) / (j + 1), predictor_ms=1.0) for j in range(3)]

    timm_drnet.cost.costs.latency_table = latency_table
    task = make_task(alpha=4.0, cost='latency')
    task.prepare_distributed()
    task(torch.randn(4, 3, 64, 64).double(), torch.randint(5, (4,)))['loss'].backward()
    return task.trainable_module.module.args.cost, len(calls)


def test_measured_costs_are_those_of_the_first_rank_for_all(tmp_path):
    cost = (10.0, 5.0, 10.0 / 3, 1.0)
    assert on_ranks(measuring, 2, tmp_path) == [(cost, 1), (cost, 0)]


def training(rank, world_size, kwargs, sync=False, pieces=1, reduce=True):
    """Some updates as train.py makes them, with images and noise of each rank's own; then --dist-bn."""
    task = make_task(alpha=flops_target(), **kwargs)
    if sync:
        allow_sync_norms_on_cpu()
        task.trainable_module = convert_sync_batchnorm(task.trainable_module)
    model = task.trainable_module
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    task.setup_ema(decay=0.9)
    task.prepare_distributed(broadcast_buffers=False)
    torch.manual_seed(100 + rank)
    for step in range(2):
        optimizer.zero_grad()
        for piece in range(pieces):
            x, target = torch.randn(4, 3, 64, 64).double(), torch.randint(5, (4,))
            if piece < pieces - 1:
                with task.no_sync():
                    task(x, target)['loss'].backward()
            else:
                task(x, target)['loss'].backward()
        optimizer.step()
        task.update_ema(step=step + 1)
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for one in (task.get_trainable_module(), task.get_trainable_module(ema=True)):
        distribute_bn(one, world_size, reduce)
    return own, dict(model.state_dict()), dict(task.get_trainable_module(ema=True).module.state_dict())


TRAININGS = {
    'pretrain': {'kwargs': {'stage': 'pretrain'}},
    'accumulation, broadcast': {'kwargs': {}, 'pieces': 2, 'reduce': False},
    'at all resolutions': {'kwargs': {'joint_resolutions': 'all'}},
    'sync-bn': {'kwargs': {}, 'sync': True},
}


def all_trainings(rank, world_size):
    """`training` of all cases; SyncBatchNorm comes last, as above."""
    return {name: training(rank, world_size, **case) for name, case in TRAININGS.items()}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """What each of three ranks gets."""
    return on_ranks(all_trainings, 3, tmp_path_factory.mktemp('ranks'))


@pytest.mark.parametrize('name', TRAININGS)
def test_ranks_stay_equal_to_the_last_bit(name, trained):
    kwargs, sync, reduce = (TRAININGS[name].get(key, default) for key, default in (
        ('kwargs', {}), ('sync', False), ('reduce', True)))
    results = [rank[name] for rank in trained]
    start = make_task(**kwargs).trainable_module.state_dict()
    _, state, averaged = results[0]
    assert all(value.isfinite().all() for value in state.values())
    moved = {name.split('.')[0] for name in state if not torch.equal(state[name], start[name].to(state[name].dtype))}
    assert moved == ({'backbone'} if kwargs.get('stage') == 'pretrain' else {'backbone', 'predictor'})
    for _, other, other_averaged in results[1:]:
        for name in state:
            if 'num_batches_tracked' not in name:  # counts what each rank has seen
                assert torch.equal(state[name], other[name]), name
                assert torch.equal(averaged[name], other_averaged[name]), name

    # --dist-bn: the mean over the ranks, or what the first one has.
    for name in (n for n in state if n.endswith(('running_mean', 'running_var'))):
        each = [own[name] for own, _, _ in results]
        torch.testing.assert_close(state[name], sum(each) / 3 if reduce else each[0])
    if not sync:
        norms = [name for name in state if 'norms.0.running_mean' in name]
        assert all(not torch.equal(a[0][n], b[0][n]) for n in norms for a, b in itertools.combinations(results, 2))


def half_precision(rank, world_size, device):
    """Gradients and statistics after a step in bfloat16, in which each rank has a resolution that the other has not."""
    if device == 'cpu':
        allow_sync_norms_on_cpu()
    task = make_task(alpha=flops_target()).to(device, torch.float32)
    model = task.trainable_module = convert_sync_batchnorm(task.trainable_module)
    task.prepare_distributed()
    [images] = divide(1, world_size, rank)
    settle_draws(DRAWN['own'], images)
    generator = torch.Generator().manual_seed(2)
    x, target = torch.randn(IMAGES, 3, 64, 64, generator=generator), torch.arange(IMAGES) % 5
    with torch.autocast(device, torch.bfloat16):
        loss = task(x[images].to(device), target[images].to(device))['loss']
    loss.backward()
    assert 0 in model.last_counts
    return {
        **{name: p.grad.cpu() for name, p in model.named_parameters()},
        **{name: b.cpu() for name, b in model.named_buffers() if name.endswith(('running_mean', 'running_var'))}}


def test_ranks_understand_each_other_in_half_precision(tmp_path):
    first, second = on_ranks(half_precision, 2, tmp_path, 'cpu')
    assert all(value.isfinite().all() for value in first.values())
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=f'{name}: {{}}'.format)


def test_norms_of_a_resolution_that_nobody_has_are_left_alone(results):
    start = dict(make_task().trainable_module.named_buffers())
    for rank in results[1]:
        for name, value in rank['sync-bn, a resolution that nobody has'][2].items():
            if '.norms.' in name:
                assert torch.equal(value, start[name]) == ('.norms.2.' in name), name
