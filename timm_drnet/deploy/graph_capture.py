"""Graph capture: a DRNet for torch.fx and TorchScript, which follow no control flow that depends on the data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.jit import is_tracing  # type: ignore[attr-defined]

from ..cascade.climb import confidence, rungs
from ..core.drnet import DRNet
from ..core.norm import resize
from .priced_predictor import chosen, priced_predictor


def refuse_tracing() -> None:
    """Refuse ``torch.jit.trace`` and ``torch.export``, which would freeze the routing of their example.

    Raises:
        RuntimeError: If one of them is at work. timm's onnx_export.py uses them, too.
    """
    if is_tracing() or torch.compiler.is_exporting():
        raise RuntimeError(
            'torch.jit.trace and torch.export would run every later image at the resolutions of the example.'
            ' Use timm-drnet export, torch.jit.script(model), or trace model.branch(j), which does not route.')


def traced_forward(model: DRNet, x: Any) -> torch.Tensor:
    """The forward of a DRNet for torch.fx, with every branch on its part of the batch.

    fx has to be shown where the views' containers stand in the model.
    """
    branches = [model.branch(j) for j in range(len(model.resolutions))]
    paths = x.tracer.submodule_paths
    for branch in branches:
        for name, module in branch.named_modules(prefix='backbone'):
            paths.setdefault(module, name)
    if model.args.router == 'cascade' and not model.training and model.num_classes:
        return climb_static(x, model.args.thresholds, branches, model.resolutions)
    if not model.args.uses_predictor:
        return branches[0](_always_resize(x, model.resolutions[0]))  # type: ignore[no-any-return]
    h, choice = model._choose(x)  # its callers in the core check x first, which fx cannot follow
    logits = route_static(x, check_chosen(choice), branches, model.resolutions)
    return logits * h.amax(dim=1, keepdim=True) if model.training else logits


@torch.fx.wrap
def check_chosen(choice: torch.Tensor) -> torch.Tensor:
    """Refuse the -1 of scores that are not finite: no branch would run, and its image would be missing.

    In a graph of torch.fx it is one node; TorchScript compiles it, and raises its error as a ``torch.jit.Error``.
    """
    if bool((choice < 0).any()):
        raise ValueError(
            'Invalid choice -1: the scores of the predictor are not finite, as those of damaged weights.')
    return choice


def route_static(
        x: torch.Tensor,
        choice: torch.Tensor,
        branches: Sequence[nn.Module],
        resolutions: Sequence[int],
) -> torch.Tensor:
    """`route` without control flow that depends on the data: every branch runs, empty ones too."""
    outputs, order = [], []
    for j, branch in enumerate(branches):
        index = (choice == j).nonzero().flatten()
        outputs.append(branch(resize(x.index_select(0, index), resolutions[j])))
        order.append(index)
    return torch.cat(outputs).index_select(0, torch.cat(order).argsort())


def climb_static(
        x: torch.Tensor,
        thresholds: Sequence[float | None],
        branches: Sequence[nn.Module],
        resolutions: Sequence[int],
) -> torch.Tensor:
    """`climb` without control flow that depends on the data: every rung runs, on no images if none is left."""
    outputs, order = [], []
    index = torch.ones_like(x.flatten(1)[:, 0]).nonzero().flatten()  # all of them
    for j in rungs(thresholds)[:-1]:
        logits = branches[j](resize(x.index_select(0, index), resolutions[j]))
        stops = confidence(logits) >= float(thresholds[j - 1] or 0.0)
        stay, go = stops.nonzero().flatten(), stops.logical_not().nonzero().flatten()
        outputs.append(logits.index_select(0, stay))
        order.append(index.index_select(0, stay))
        index = index.index_select(0, go)
    outputs.append(branches[0](resize(x.index_select(0, index), resolutions[0])))
    order.append(index)
    return torch.cat(outputs).index_select(0, torch.cat(order).argsort())


def scriptable(model: DRNet) -> nn.Module:
    """What ``torch.jit.script`` is to see in the place of a DRNet."""
    branches = [model.branch(j) for j in range(len(model.resolutions))]
    if model.args.router == 'cascade' and model.num_classes:
        ran = rungs(model.args.thresholds)
        return ScriptedCascade(
            [branches[j] for j in ran], [model.resolutions[j] for j in ran],
            [float(model.args.thresholds[j - 1] or 0.0) for j in ran[:-1]] + [0.0])
    if not model.args.uses_predictor:
        return ScriptedRouting(None, branches[:1], 0, model.resolutions[:1])
    return ScriptedRouting(priced_predictor(model), branches, model.args.predictor_size, model.resolutions)


class ScriptedRouting(nn.Module):
    """A DRNet for ``torch.jit.script``: inference only, plain branches, routing in TorchScript's own control flow."""

    def __init__(
            self,
            predictor: nn.Module | None,
            branches: Sequence[nn.Module],
            predictor_size: int,
            resolutions: Sequence[int],
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.branches = nn.ModuleList(branches)
        self.predictor_size = predictor_size
        self.resolutions = list(resolutions)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S)."""
        if self.predictor is None:
            choice = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        else:
            choice = check_chosen(chosen(self.predictor(_always_resize(x, self.predictor_size))))
        outputs: list[torch.Tensor] = []
        order: list[torch.Tensor] = []
        for j, branch in enumerate(self.branches):
            index = (choice == j).nonzero().flatten()
            if index.numel() > 0:
                outputs.append(branch(_always_resize(x.index_select(0, index), self.resolutions[j])))
                order.append(index)
        return torch.cat(outputs).index_select(0, torch.cat(order).argsort())


class ScriptedCascade(nn.Module):
    """A cascade for ``torch.jit.script``: inference only, its rungs from the smallest up."""

    def __init__(self, branches: Sequence[nn.Module], resolutions: Sequence[int], thresholds: Sequence[float]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.resolutions = list(resolutions)
        self.thresholds = list(thresholds)  # 0 for the last, which answers all that is left

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S)."""
        outputs: list[torch.Tensor] = []
        order: list[torch.Tensor] = []
        index = torch.arange(len(x), device=x.device)
        for j, branch in enumerate(self.branches):
            if index.numel() > 0:
                logits = branch(_always_resize(x.index_select(0, index), self.resolutions[j]))
                stops = logits.float().softmax(dim=1).amax(dim=1) >= self.thresholds[j]
                if self.thresholds[j] == 0.0:
                    stops = torch.ones_like(stops)  # even those that are not finite
                outputs.append(logits[stops])
                order.append(index[stops])
                index = index[stops.logical_not()]
        return torch.cat(outputs).index_select(0, torch.cat(order).argsort())


def _always_resize(x: torch.Tensor, size: int) -> torch.Tensor:
    return torch.nn.functional.interpolate(x, size=[size, size], mode='bilinear', align_corners=False)
