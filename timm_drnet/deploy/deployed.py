"""Deployment: a DRNet for inference, with norms folded into convolutions and batches cut to fit the processor's caches.

Every resolution has norms of its own, so folding them gives every resolution convolutions of its own. That is what the
speed costs: as many sets of them in memory as there are candidates.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..cascade.climb import climb
from ..core.drnet import DRNet
from ..core.norm import resize
from ..core.routing import check_choices, check_images, check_index, route
from .graph_capture import refuse_tracing
from .onednn import FusedConv
from .pieces import ROUNDS, cut_up, fastest_cut, random_images
from .priced_predictor import chosen
from .stopwatch import seconds_of

_FILLING = 64  # images that keep an accelerator busy: with a few, the time is what it takes to start its kernels


class DeployedDRNet(nn.Module):
    """A DRNet for inference, made by ``model.deploy()``; it can be neither trained nor changed.

    It never records gradients, and its results are ordinary tensors, of the images' data type. Any number of threads
    can use it. After a move to another device or data type it looks for the cuts anew; for another number of threads,
    call `calibrate`.

    Args:
        predictor: From (B, C, S, S) to (B, M) scores; None where none runs: in a cascade and in the pretrain stage.
        branches: One for each candidate, from (B, C, r, r) to (B, num_classes).
        model: The model that they come from.
    """

    def __init__(self, predictor: nn.Module | None, branches: Sequence[nn.Module], model: DRNet) -> None:
        super().__init__()
        self.predictor = predictor
        self.branches = nn.ModuleList(branches)
        self.resolutions = model.resolutions
        """Candidate sides in pixels, largest first."""
        self.args = model.args
        """The arguments of the model."""
        self.prices = (0.0,) * len(branches)
        """The dial is inside the predictor already."""
        self.in_chans = model.in_chans
        """Channels of the images."""
        self.num_classes = model.num_classes
        """Number of logits, 0 without a classifier."""
        self.pretrained_cfg: Any = copy.deepcopy(getattr(model, 'pretrained_cfg', {}))
        """timm's configuration of the model, such as how its images are prepared."""
        self.calibrated = False
        """Whether the cuts were measured."""
        self.micro_batch = (0,) * len(branches)
        """Images that run at once at each resolution, 0 for any number: at most, or where that was measured, about."""
        self.predictor_micro_batch = 0
        """Images that the predictor sees at once, 0 for any number."""
        super().train(False)
        self._choose_layout()

    def branch(self, index: int) -> nn.Module:
        """The backbone at one candidate resolution. It does not resize; give it images of ``resolutions[index]``.

        Args:
            index: The candidate.

        Returns:
            A module from (B, in_chans, r, r) to (B, num_classes).

        Raises:
            ValueError: If there is no such candidate.
        """
        return self.branches[check_index(index, len(self.resolutions))]

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify each image at the resolution predicted for it.

        Args:
            x: Images, (B, in_chans, S, S), of any size S.

        Returns:
            Logits, (B, num_classes), or pooled embeddings without a classifier. In the pretrain stage those of the
            largest resolution.

        Raises:
            RuntimeError: Under ``torch.jit.trace``, which cannot follow the routing.
            ValueError: If x is not a batch of square images, or on a processor not all of it finite.
        """
        refuse_tracing()
        return self.classify(x)[0]  # type: ignore[no-any-return]  # the decorator is not typed

    @torch.compiler.disable
    @torch.no_grad()
    def classify(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify each image, and say at which resolution, in one go.

        Args:
            x: Images, (B, in_chans, S, S), of any size S.

        Returns:
            Logits, (B, num_classes), and indices into ``resolutions``, (B,) int64.

        Raises:
            ValueError: If x is not a batch of square images, or on a processor not all of it finite.
        """
        if self.args.router == 'cascade' and self.num_classes:
            _check_numbers(x)
            images = torch.arange(len(x), device=x.device)  # what climbs is the images' numbers
            logits, choice, _ = climb(images, self.args.thresholds, lambda j, part: self._run(j, x, part))
            return logits, choice
        choice = self.predict_resolution(x)
        return self._route(x, choice), choice

    @torch.compiler.disable
    @torch.no_grad()
    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choose a candidate for each image.

        Args:
            x: Images, (B, in_chans, S, S).

        Returns:
            Indices into ``resolutions``, (B,) int64, as of the model that this one was made from.

        Raises:
            ValueError: If x is not a batch of square images, or on a processor not all of it finite.
        """
        if self.args.router == 'cascade' and self.num_classes:
            return self.classify(x)[1]  # type: ignore[no-any-return]
        _check_numbers(x)
        if self.args.uses_predictor:
            return chosen(self.predictor_scores(x))
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)

    @torch.compiler.disable
    @torch.no_grad()
    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        """Classify at given resolutions, without the predictor.

        Args:
            x: Images, (B, in_chans, S, S).
            choice: Index into ``resolutions`` for all images, or one for each, (B,) integers.

        Returns:
            Logits, (B, num_classes).

        Raises:
            ValueError: If x is not a batch of square images, on a processor not all of it finite, or a choice is not a
                candidate.
        """
        _check_numbers(x)
        if isinstance(choice, int):
            return self._run(check_index(choice, len(self.resolutions)), x)
        return self._route(x, check_choices(choice, x))

    @torch.no_grad()
    def calibrate(self) -> None:
        """Measure in how large pieces batches run fastest here, at every resolution, and cut them so from now on.

        On a processor, the activations of a large batch do not fit its caches. An accelerator is not measured: it needs
        large batches, and gets them whole.
        """
        self.calibrated = True
        if self._weight().device.type != 'cpu':
            self.micro_batch, self.predictor_micro_batch = (0,) * len(self.branches), 0
            return
        self.micro_batch = tuple(
            fastest_cut(branch, self._images(1, r)) for branch, r in zip(self.branches, self.resolutions, strict=True))
        if self.predictor is not None:
            self.predictor_micro_batch = fastest_cut(self.predictor, self._images(1, self.args.predictor_size))

    def memory(self) -> int:
        """Bytes that all weights take, those that branches have in common counted once.

        It grows when a resolution runs for the first time: then its convolutions are put into the processor's order.
        """
        packed = sum(m.packed.memory() for m in self.modules() if isinstance(m, FusedConv) and m.packed is not None)
        return packed + sum(t.numel() * t.element_size() for t in (*self.parameters(), *self.buffers()))

    def train(self, mode: bool = True) -> 'DeployedDRNet':
        """Stay in eval mode.

        Raises:
            RuntimeError: If asked to train.
        """
        if mode:
            raise RuntimeError('A deployed DRNet is for inference: train the model that it was made from.')
        return super().train(False)

    def __repr__(self) -> str:
        """Say what was chosen; the graphs are printed by ``branch(j)``."""
        return (
            f'{type(self).__name__}(resolutions={self.resolutions}, micro_batch={self.micro_batch},'
            f' predictor_micro_batch={self.predictor_micro_batch}, memory={self.memory() / 1e6:.1f} MB)')

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> 'DeployedDRNet':
        weight = self._weight()
        before = (weight.device, weight.dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        weight = self._weight()
        if (weight.device, weight.dtype) != before and not weight.is_meta:
            self._choose_layout()
            if self.calibrated:
                self.calibrate()
        return self

    @torch.no_grad()
    def predictor_scores(self, x: torch.Tensor) -> torch.Tensor:
        """What the predictor says of images, (B, in_chans, S, S): (B, M). The dial is in it, as nothing else is priced.

        Raises:
            RuntimeError: If no predictor is in use.
        """
        if self.predictor is None:
            raise RuntimeError('No predictor is in use: the model is a cascade, or of the pretrain stage.')
        pieces = cut_up(x, self.predictor_micro_batch, at_most=not self.calibrated)
        size, dtype = self.args.predictor_size, self._weight().dtype
        return torch.cat([self.predictor(resize(piece, size).to(dtype)) for piece in pieces]).to(x.dtype)

    def _run(self, index: int, x: torch.Tensor, images: torch.Tensor | None = None) -> torch.Tensor:
        """Some images, or all, at one candidate resolution; each piece is taken together only when its turn comes."""
        branch, size, dtype = self.branches[index], self.resolutions[index], self._weight().dtype
        cut, at_most = self.micro_batch[index], not self.calibrated
        pieces: Iterable[torch.Tensor] = cut_up(x, cut, at_most)
        if images is not None and len(images) < len(x):
            pieces = (x[part] for part in cut_up(images, cut, at_most))
        outputs = [branch(resize(piece, size).to(dtype)) for piece in pieces]
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).to(x.dtype)

    def _route(self, x: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        # What is routed is the images' numbers.
        images = torch.arange(len(x), device=choice.device)
        return route(images, choice, len(self.resolutions), lambda j, part: self._run(j, x, part))[0]

    def _weight(self) -> torch.Tensor:
        return next(self.parameters())

    def _images(self, n: int, size: int) -> torch.Tensor:
        return random_images(self.in_chans, self._weight(), n, size)

    @torch.no_grad()
    def _choose_layout(self) -> None:
        """Channels last around oneDNN's convolutions, which know no other; elsewhere what is faster, measured."""
        self.to(memory_format=torch.channels_last)
        if any(m.runs_fused for m in self.modules() if isinstance(m, FusedConv)):
            return
        seconds = []
        x = self._images(8 if self._weight().is_cpu else _FILLING, self.resolutions[0])
        for layout in (torch.channels_last, torch.contiguous_format):
            self.to(memory_format=layout)
            run = partial(self.branches[0], x)
            seconds_of(run, x.device)  # the first run prepares what later ones find
            seconds.append(min(seconds_of(run, x.device) for _ in range(ROUNDS)))
        if seconds[0] < seconds[1]:
            self.to(memory_format=torch.channels_last)


def _check_numbers(x: torch.Tensor) -> None:
    """Refuse what is no batch of images, or holds what is no number: oneDNN's activations make a zero of it."""
    check_images(x)
    if x.is_cpu and not x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite():
        raise ValueError('Invalid input: some of its values are not finite.')
