"""Training on the card: one loop for every stage, with a constant rate that falls to zero in the last quarter.

Stages that share their beginning share its weights: the rate has not fallen yet where they part, so every row has had
the same number of epochs and the same schedule.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from timm_drnet.data.output_folder import staged_file

from .images import Images

WARMUP = 1.0
"""Epochs."""


class OutOfTime(Exception):
    """The time that was set is over; the row is left out."""


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    epochs: int
    """Of a row, from the beginning."""
    cooldown: int
    """The last of them, in which the rate falls to zero."""
    batch: int = 512
    lr: float = 0.2
    weight_decay: float = 5e-4
    width: float = 1.0
    """Of the backbone, as a factor for its channels."""
    deadline: float = float('inf')
    """As of `time.time`."""


def rate(setting: Setting, epoch: float) -> float:
    """The learning rate, as a fraction of the largest, at a point of the training in epochs."""
    return min(1.0, epoch / WARMUP, (setting.epochs - epoch) / setting.cooldown)


def optimizer_for(model: nn.Module, setting: Setting, slow: Sequence[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """SGD as timm's train.py makes it: norms and biases do not decay; slow parameters learn at a tenth of the rate."""
    slowly = {id(p) for p in slow}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        if p.requires_grad:
            groups.setdefault((p.ndim > 1, id(p) in slowly), []).append(p)
    return torch.optim.SGD([
        {'params': params, 'weight_decay': setting.weight_decay if decays else 0.0, 'part': 0.1 if behind else 1.0}
        for (decays, behind), params in groups.items()
    ], lr=setting.lr, momentum=0.9, nesterov=True)


def fit(
        model: nn.Module,
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        optimizer: torch.optim.Optimizer,
        images: Images,
        setting: Setting,
        start: int,
        end: int,
        generator: torch.Generator,
        tell: Callable[[str], None] = lambda text: None,
        checkpoint: Path | None = None,
) -> None:
    """Train for some epochs, or those of them that a checkpoint lacks.

    Args:
        model: In place.
        loss_of: The loss of images and labels.
        optimizer: Of its parameters.
        images: To train on.
        setting: Batch size, rate, deadline.
        start: Epochs done before.
        end: Epochs done afterwards.
        generator: Of crops and order.
        tell: What the course is told to.
        checkpoint: A file that is written after every epoch; if it exists, training goes on from there.

    Raises:
        OutOfTime: At the deadline.
        ValueError: If the checkpoint is of another setting.
    """
    model.train()
    device = images.pixels.device
    steps = len(images) // setting.batch
    if checkpoint is not None and checkpoint.exists():
        start = _resume(checkpoint, setting, model, optimizer, generator)
        tell(f'goes on after epoch {start}')
    for epoch in range(start, end):
        began, total = time.time(), torch.zeros((), device=device)
        for step, (x, y) in enumerate(images.batches(setting.batch, generator)):
            for group in optimizer.param_groups:
                group['lr'] = setting.lr * group['part'] * rate(setting, epoch + (step + 0.5) / steps)
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
            if time.time() > setting.deadline:
                raise OutOfTime
        tell(f'epoch {epoch + 1} of {setting.epochs}: loss {float(total) / steps:.3f}, {time.time() - began:.1f} s')
        if checkpoint is not None:
            _save(checkpoint, epoch + 1, setting, model, optimizer, generator)


def _save(
        path: Path,
        epoch: int,
        setting: Setting,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
) -> None:
    state = {
        'epoch': epoch, 'setting': _told(setting), 'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
        'crops': generator.get_state(), 'noise': torch.get_rng_state()}
    with staged_file(path) as file:
        torch.save(state, file)


def _told(setting: Setting) -> dict[str, float]:
    """What a training must not change on its way."""
    return {name: value for name, value in asdict(setting).items() if name != 'deadline'}


def _resume(
        path: Path,
        setting: Setting,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
) -> int:
    state = torch.load(path, map_location='cpu')
    if state['setting'] != _told(setting):
        raise ValueError(
            f'{path} was begun with {state["setting"]}, not {_told(setting)}: use these options, or another output'
            ' folder.')
    model.load_state_dict(state['model'])
    optimizer.load_state_dict(state['optimizer'])
    generator.set_state(state['crops'])
    torch.set_rng_state(state['noise'])
    return int(state['epoch'])
