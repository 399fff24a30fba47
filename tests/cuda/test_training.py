"""Both stages train on a card through timm's task: in half precision, without waits, and beside other ranks."""

import contextlib

import pytest
import torch
import torch.distributed as dist
from device import DEVICE, needs_card, waits_of
from on_cuda import make_update
from processes import on_ranks
from timm.layers import convert_sync_batchnorm
from timm.task import ClassificationTask
from train.test_distributed import half_precision

pytestmark = needs_card

STAGES = {
    'joint': {'alpha': 8e-3}, 'joint at all resolutions': {'alpha': 8e-3, 'joint_resolutions': 'all'},
    'pretrain': {'stage': 'pretrain'},
}


@pytest.fixture(params=STAGES)
def task(request, make_tiny):
    """timm's task of a model on the card, in channels_last."""
    model = make_tiny(**STAGES[request.param]).to(DEVICE, memory_format=torch.channels_last).train()
    return ClassificationTask(model, torch.nn.CrossEntropyLoss(), device=DEVICE, verbose=False)


def batch(images, n=12):
    x = images(n).to(DEVICE, memory_format=torch.channels_last)
    return x, torch.arange(n, device=DEVICE) % 5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_trains_in_half_precision(task, images, dtype):
    model = task.trainable_module
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step, scaler = make_update(task, *batch(images), dtype)
    losses = torch.stack([step() for _ in range(8)])
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert all(t.isfinite().all() for t in model.state_dict().values())
    moved = {name.split('.')[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({'backbone'} if model.args.stage == 'pretrain' else {'backbone', 'predictor'})
    if scaler is not None:  # a few steps are skipped, as in any training, until the scale fits
        assert scaler.state_dict()['scale'] >= 2 ** 11


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_step_waits_for_its_routing_and_the_scaler_alone(task, images, waits, dtype):
    step, scaler = make_update(task, *batch(images), dtype)
    step()
    found = waits_of(step, waits)
    routing = 0 if task.trainable_module.args.trains_at_all else 1
    assert len(found) == routing + (scaler is not None), found


@contextlib.contextmanager
def one_rank(folder):
    """A group of this process alone."""
    if DEVICE.type == 'cuda':
        torch.cuda.set_device(0)
    dist.init_process_group(
        'nccl' if DEVICE.type == 'cuda' else 'gloo', init_method=f'file://{folder / "store"}', rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_one_rank_with_synchronized_norms_is_one_process(make_tiny, images, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    x, target = batch(images, 24)  # each resolution gets some
    results = []
    for distributed in (False, True):
        model = make_tiny(alpha=8e-3).to(DEVICE).train()
        task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), device=DEVICE, verbose=False)
        with one_rank(tmp_path) if distributed else contextlib.nullcontext():
            if distributed:
                if DEVICE.type == 'cuda':  # a processor has no such norms
                    task.trainable_module = convert_sync_batchnorm(model)
                task.prepare_distributed(device_ids=[0] if DEVICE.type == 'cuda' else None)
            torch.manual_seed(3)  # the same draws
            loss = task(x, target)['loss']
            loss.backward()
            results.append((loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    assert results[0][1].keys() == results[1][1].keys()
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, rtol=1e-2, atol=1e-3, msg=f'{name}: {{}}'.format)


def test_ranks_in_half_precision_where_a_resolution_is_drawn_by_one_alone(tmp_path):
    first, second = on_ranks(half_precision, 2, tmp_path, DEVICE.type)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=f'{name}: {{}}'.format)
