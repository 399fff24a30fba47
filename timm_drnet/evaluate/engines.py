"""Engines: the ways to run a DRNet, behind one interface, each with its batches cut into the pieces that serve it best.

A large batch has activations beyond the processor's caches, and runs faster in pieces: a comparison in which only one
side may cut its batch flatters that side.
"""

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from ..core.drnet import DRNet
from ..core.routing import route
from ..cost.flops import cost_table
from ..deploy.deployment import deploy
from ..deploy.engine_names import ENGINES, ONNX_ENGINES
from ..deploy.onnx_engine import Exports, OnnxEngine
from ..deploy.pieces import cut_up
from ..deploy.stopwatch import seconds_of

_CALIBRATION = 16
"""Images that int8 is calibrated with: too few to hold some out, so every operator is in int8. Times are the same for
any ranges, and noise has no answers to keep."""
_PIECES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Engine(Protocol):
    """A DRNet that is ready to run."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Candidate sides in pixels, largest first."""

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choices, (B,) int64, of images, (B, C, S, S)."""

    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S), at a choice, or at one for each, (B,) int64."""


def prepare_engine(
        name: str,
        model: DRNet,
        batch: torch.Tensor,
        threads: int | None = None,
        exports: Exports | None = None,
) -> Engine:
    """Make a DRNet ready to run.

    Args:
        name: One of `timm_drnet.deploy.engine_names.ENGINES`.
        model: The model in eval mode, on the device and in the data type to run in. It is not changed.
        batch: The images to expect, (B, C, S, S): pieces are as large as serves batches of that size.
        threads: Threads of ONNX Runtime and OpenVINO; the other engines have PyTorch's.
        exports: Of the model, to be shared among engines; None to export it for this one alone.

    Returns:
        The engine.

    Raises:
        ImportError: If what runs the engine is not installed.
        ValueError: If there is no such engine, or it cannot run on the model's device or in its data type.
    """
    if name == 'eager':
        return Pieces(model, batch)
    if name == 'compile':
        compiled = copy.deepcopy(model)
        compiled.compile()
        return Pieces(compiled, batch)
    if name == 'deployed':
        return deploy(model)
    if name == 'deployed-bf16':
        return deploy(model, dtype=torch.bfloat16)
    if name in ONNX_ENGINES:
        if batch.device.type != 'cpu' or batch.dtype != torch.float32:
            raise ValueError(f'The engine {name} takes float32 images on the CPU: give other engines.')
        with contextlib.ExitStack() as stack:
            exports = exports or stack.enter_context(exports_for(model, batch))
            uncut = OnnxEngine(exports.folder(name), model, name, threads, len(batch))
        return Pieces(uncut, batch)
    raise ValueError(f'Unknown engine {name!r}: use one of {", ".join(map(repr, ENGINES))}.')


def exports_for(model: DRNet, batch: torch.Tensor) -> Exports:
    """What the engines of ONNX Runtime and OpenVINO run, of a model and the images to expect, (B, C, S, S)."""
    return Exports(model, cost_table(model), batch[:_CALIBRATION])


class Pieces:
    """A model that runs its batches in pieces.

    Args:
        model: A DRNet.
        batch: The images to find the best pieces with, (B, C, S, S).
    """

    def __init__(self, model: Engine, batch: torch.Tensor) -> None:
        self.model = model
        self.resolutions = model.resolutions
        self.predictor_piece = _best_piece(model.predict_resolution, batch)
        self.pieces = tuple(
            _best_piece(partial(model.forward_at, choice=j), batch) for j in range(len(model.resolutions)))

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choices, (B,) int64, of images, (B, C, S, S)."""
        return torch.cat([self.model.predict_resolution(part) for part in cut_up(x, self.predictor_piece)])

    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S), at a choice, or at one for each, (B,) int64."""
        if isinstance(choice, int):
            return torch.cat([self.model.forward_at(part, choice) for part in cut_up(x, self.pieces[choice])])
        return route(x, choice, len(self.resolutions), lambda j, part: self.forward_at(part, j))[0]


def _best_piece(run: Callable[[torch.Tensor], object], batch: torch.Tensor, rounds: int = 2) -> int:
    """The size of pieces at which an image takes least time; the whole batch off the CPU, where pieces never pay."""
    if batch.device.type != 'cpu':
        return len(batch)
    sizes = [size for size in _PIECES if size < len(batch)] + [len(batch)]
    best = dict.fromkeys(sizes, float('inf'))
    for repeat in range(1 + rounds):  # the first only warms up
        for size in sizes:
            taken = seconds_of(partial(run, batch[:size]), batch.device)
            if repeat:
                best[size] = min(best[size], taken / size)
    return min(sizes, key=best.__getitem__)
