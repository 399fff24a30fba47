"""What timm's train.py does with a DRNet, for tests that stop it or run several of it.

The order is train.py's: model, task, optimizer, resume, EMA, schedule, epochs; evaluation would add nothing here. Two
things differ: every epoch draws its images and its noise anew from its own seed, so that an interrupted run can be
held to the bit against one that was not; and what happens is reported.
"""

import argparse
import json
import time

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver

import timm_drnet

STEPS = 3
"""In an epoch."""


def make_model(**kwargs):
    """A DRNet of three resolutions that trains a step in some 30 ms."""
    torch.manual_seed(0)
    args = {
        'resolutions': (64, 48, 32), 'num_classes': 5, 'predictor': 'inverted_residual', 'predictor_size': 32,
        'alpha': 0.005, **kwargs,
    }
    return timm_drnet.create_drnet('test_resnet', **args)


def train(folder, epochs, resume=None, **kwargs):
    """Train with checkpoints.

    Args:
        folder: For the checkpoints, and for ``steps.jsonl``: epoch, step, learning rates and time, a line for each
            step, before it.
        epochs: Number of epochs.
        resume: Checkpoint to go on from.
        kwargs: Of `make_model`.

    Returns:
        The task and the optimizer.
    """
    torch.set_num_threads(1)
    model = make_model(**kwargs)
    task = ClassificationTask(model, torch.nn.CrossEntropyLoss(), verbose=False)
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt='momentum', lr=0.05, weight_decay=1e-4)
    start = resume_task_checkpoint(task, str(resume), optimizer, log_info=False) if resume else 0
    task.setup_ema(decay=0.9)
    if resume:
        load_task_ema_checkpoint(task, str(resume))
    saver = CheckpointSaver(
        model, optimizer, args=argparse.Namespace(model='tiny'), checkpoint_dir=str(folder), recovery_dir=str(folder),
        max_history=2, task=task)
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched='cosine', num_epochs=epochs, warmup_epochs=2, warmup_lr=1e-4, step_on_epochs=False,
        updates_per_epoch=STEPS)
    if start:
        scheduler.step_update(start * STEPS)
    with open(folder / 'steps.jsonl', 'a') as report:
        for epoch in range(start, epochs):
            torch.manual_seed(epoch)
            task.train()
            for step in range(STEPS):
                rates = [group['lr'] for group in optimizer.param_groups]
                report.write(json.dumps([epoch, step, rates, time.monotonic()]) + '\n')
                report.flush()
                optimizer.zero_grad()
                task(torch.randn(6, 3, 64, 64), torch.randint(5, (6,)))['loss'].backward()
                optimizer.step()
                updates = epoch * STEPS + step + 1
                task.update_ema(step=updates)
                scheduler.step_update(updates)
            saver.save_checkpoint(epoch, metric=float(epoch))
            scheduler.step(epoch + 1)
    return task, optimizer
