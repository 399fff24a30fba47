"""Engines: the ways to run a DRNet, behind one interface, each with its batches cut into the pieces that serve it best.

A large batch has activations beyond the processor's caches, and runs faster in pieces: a comparison in which only one
side may cut its batch flatters that side.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch

from ..core.drnet import DRNet
from ..core.routing import route
from ..cost.flops import cost_table
from ..deploy.deployed import deploy
from ..deploy.export import export_model
from ..deploy.onnx_runner import OnnxDRNet

ENGINES = ('eager', 'deployed', 'compile', 'onnxruntime')

_PIECES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Engine(Protocol):
    """A DRNet that is ready to run."""

    resolutions: tuple[int, ...]
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
) -> Engine:
    """Make a DRNet ready to run.

    Args:
        name: One of `ENGINES`.
        model: The model in eval mode, on the device and in the data type to run in. It is not changed.
        batch: The images to expect, (B, C, S, S): pieces are as large as serves batches of that size.
        threads: Threads of ONNX Runtime; the other engines have PyTorch's.

    Returns:
        The engine.

    Raises:
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
    if name == 'onnxruntime':
        if batch.device.type != 'cpu' or batch.dtype != torch.float32:
            raise ValueError('The engine onnxruntime runs here on the CPU in float32: give other engines.')
        return _OnnxEngine(model, threads)
    raise ValueError(f'Unknown engine {name!r}: use one of {", ".join(map(repr, ENGINES))}.')


class Pieces:
    """A model that runs its batches in pieces.

    Args:
        model: A DRNet.
        batch: The images to find the best pieces with, (B, C, S, S).
    """

    def __init__(self, model: DRNet, batch: torch.Tensor) -> None:
        self.model = model
        self.resolutions = model.resolutions
        self.predictor_piece = _best_piece(model.predict_resolution, batch)
        self.pieces = tuple(
            _best_piece(partial(model.forward_at, choice=j), batch) for j in range(len(model.resolutions)))

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choices, (B,) int64, of images, (B, C, S, S)."""
        return torch.cat([self.model.predict_resolution(part) for part in _cut(x, self.predictor_piece)])

    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S), at a choice, or at one for each, (B,) int64."""
        if isinstance(choice, int):
            return torch.cat([self.model.forward_at(part, choice) for part in _cut(x, self.pieces[choice])])
        return route(x, choice, len(self.resolutions), lambda j, part: self.forward_at(part, j))[0]


class _OnnxEngine:
    """The exported model in ONNX Runtime, which cuts batches by itself."""

    def __init__(self, model: DRNet, threads: int | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            export_model(model, f'{folder}/export', cost_table(model))
            self.runner = OnnxDRNet(f'{folder}/export', threads=threads)
        self.resolutions = model.resolutions

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.runner.predict_resolution(x.numpy()))

    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        at = choice if isinstance(choice, int) else choice.numpy()
        return torch.from_numpy(self.runner.forward_at(x.numpy(), at))


def _best_piece(run: Callable[[torch.Tensor], object], batch: torch.Tensor, rounds: int = 2) -> int:
    """The size of pieces at which an image takes least time; the whole batch off the CPU, where pieces never pay."""
    if batch.device.type != 'cpu':
        return len(batch)
    sizes = [size for size in _PIECES if size < len(batch)] + [len(batch)]
    best = dict.fromkeys(sizes, float('inf'))
    for repeat in range(1 + rounds):  # the first only warms up
        for size in sizes:
            start = time.perf_counter()
            run(batch[:size])
            if repeat:
                best[size] = min(best[size], (time.perf_counter() - start) / size)
    return min(sizes, key=best.__getitem__)


def _cut(x: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    """Pieces of at most a size, and of sizes as even as can be: a small rest would run at a worse rate."""
    return x.tensor_split(-(-len(x) // size))
