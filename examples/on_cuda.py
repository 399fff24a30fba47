"""What the benchmark and the tests on a CUDA card share: where the host waits for the card, and one update."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from timm.task import ClassificationTask
from timm.utils import NativeScaler


def host_waits(call: Callable[[], object]) -> list[str]:
    """Where the host waits for the card within a call: places in the code, such as ``core/routing.py:70``.

    Args:
        call: What to call; kernels that it needs should be loaded.
    """
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode('default')
    found = [w for w in caught if 'called a synchronizing CUDA operation' in str(w.message)]
    return [f'{"/".join(Path(w.filename).parts[-2:])}:{w.lineno}' for w in found]


def make_update(
        task: ClassificationTask,
        x: torch.Tensor,
        target: torch.Tensor,
        dtype: torch.dtype,
) -> tuple[Callable[[], torch.Tensor], NativeScaler | None]:
    """A function that makes one update as timm's train.py does, and in float16 the GradScaler that it uses.

    Args:
        task: timm's task of the model, which is in training mode.
        x: Images, (B, C, S, S).
        target: Their labels, (B,).
        dtype: Of autocast.
    """
    parameters = [p for p in task.trainable_module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    scaler = NativeScaler(device=x.device.type) if dtype == torch.float16 else None

    def update() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast(x.device.type, dtype):
            loss = task(x, target)['loss']
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler(loss, optimizer)
        return loss.detach()

    return update, scaler
