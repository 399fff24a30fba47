"""Run an exported DRNet with ONNX Runtime or OpenVINO, NumPy and Pillow alone.

This file is part of timm-drnet, https://www.apache.org/licenses/LICENSE-2.0. ``timm-drnet export`` puts a copy of it
beside the models that it writes, with the six files that it imports.

    python onnx_runner.py photo.jpg folder ...

    from onnx_runner import OnnxDRNet
    model = OnnxDRNet('folder')
    model.classify(['photo.jpg'])
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING or __package__:
    from ..data.files import find_images
    from ..data.pixels import (
        REDUCING_GAP,
        UnreadableImageError,
        check_reducing_gap,
        first_line,
        ignore_warnings,
        printable,
    )
    from . import runtimes
    from .arrays import Array, check_choices, check_images, confidence, resize
    from .manifest import MANIFEST, InvalidExportError, read_file, read_manifest
    from .preprocessing import prepare
else:  # copied beside an export
    import runtimes
    from arrays import Array, check_choices, check_images, confidence, resize
    from files import find_images
    from manifest import MANIFEST, InvalidExportError, read_file, read_manifest
    from pixels import REDUCING_GAP, UnreadableImageError, check_reducing_gap, first_line, ignore_warnings, printable
    from preprocessing import prepare

_MICRO_BATCH = 16
"""Images that a model gets at once; see `OnnxDRNet`."""


@dataclass(frozen=True)
class Classification:
    """What the model says about one image."""

    labels: tuple[str, ...]
    """The most probable labels, best first."""
    probabilities: tuple[float, ...]
    """Of the labels, between 0 and 1."""
    resolution: int
    """Side in pixels at which the image was classified."""
    flops: int
    """What was spent on it: the predictor, and the backbone at the resolution, or all rungs of a cascade that ran."""


class OnnxDRNet:
    """A DRNet that runs on ONNX Runtime or OpenVINO, with the methods of the PyTorch model on NumPy arrays.

    Every file is checked before it is used. Threads may share one runner.

    Args:
        path: A folder written by ``timm-drnet export``.
        providers: ONNX Runtime's execution providers, best first, each a name or a name and its options. Default: the
            CPU.
        threads: CPU threads of one call. Default: ONNX Runtime's own choice, one for each core.
        micro_batch: Most images that a model gets at once; a larger batch is cut into equal parts. Default: 16 on the
            CPU, where larger parts take memory and gain no time; elsewhere batches are not cut.
        runtime: ``onnxruntime`` or ``openvino``. Default: the one that is installed; of both, ONNX Runtime for float32,
            and OpenVINO for other precisions, where it is faster.
        reducing_gap: How many times the size that the model needs a JPEG file is decoded at least, which takes the less
            time the smaller it is; None to decode all. Default: 2.5, where accuracy stays.

    Raises:
        InvalidExportError: If the folder is no complete, unchanged export, or of a newer format.
        ImportError: If the runtime is not installed.
        ValueError: If an argument is out of range.
    """

    def __init__(
            self,
            path: str | os.PathLike[str],
            providers: Sequence[runtimes.Provider] | None = None,
            threads: int | None = None,
            micro_batch: int | None = None,
            runtime: str | None = None,
            reducing_gap: float | None = REDUCING_GAP,
    ) -> None:
        check_reducing_gap(reducing_gap)
        for name, value in (('threads', threads), ('micro_batch', micro_batch)):
            if value is not None and value < 1:
                raise ValueError(f'Invalid {name} {value}: use at least 1, or None for the default.')
        folder = Path(path)
        manifest = read_manifest(folder, 'onnx')
        self.manifest: dict[str, Any] = manifest
        """All that the export recorded: the costs of the resolutions, how images are prepared, versions, licence."""
        self.resolutions: tuple[int, ...] = tuple(manifest['resolutions'])
        """Candidate sides in pixels, largest first."""
        self.labels: tuple[str, ...] = tuple(manifest['labels'])
        """One for each class."""
        self.runtime = runtimes.pick_runtime(runtime, manifest['precision'], providers)
        """What runs it: ``onnxruntime`` or ``openvino``."""
        if providers is not None:
            runtimes.check_providers(providers)
        on_cpu = providers is None or runtimes.provider_names(providers) == ['CPUExecutionProvider']
        self._reducing_gap = reducing_gap
        self._micro_batch = micro_batch or (_MICRO_BATCH if on_cpu else None)

        def load(entry: dict[str, Any], side: int, outputs: int) -> runtimes.Program:
            content = read_file(folder, entry)
            try:
                program = runtimes.load(content, self.runtime, manifest['precision'], threads, providers)
            except ValueError:
                raise
            except Exception as error:  # of many types
                raise InvalidExportError(
                    f'{folder / entry["name"]}: {runtimes.version(self.runtime)} cannot load it'
                    f' ({first_line(error)}); install a newer one, or export the model again with a lower --opset'
                ) from error
            wanted = [manifest['in_chans'], side, side]
            if program.shape[0] != wanted or (outputs and program.shape[1] != [outputs]):
                raise InvalidExportError(
                    f'{folder / entry["name"]}: not the program that {MANIFEST} describes, which takes {wanted};'
                    ' copy all of the folder, or export the model again')
            return program

        self._climbs = manifest['router'] == 'cascade' and manifest['num_classes'] > 0
        files = manifest['files']
        self._predictor = None
        if files['predictor']:
            self._predictor = load(files['predictor'], manifest['predictor_size'], len(self.resolutions))
        self._branches = [
            load(entry, side, manifest['num_classes'])
            for entry, side in zip(files['branches'], self.resolutions, strict=True)]

    def __call__(self, x: Array) -> Array:
        """Classify each image at the resolution chosen for it.

        Args:
            x: Normalized images, (B, C, S, S), of any size S.

        Returns:
            Logits, (B, num_classes); in the pretrain stage those of the largest resolution.

        Raises:
            ValueError: If x is not a batch of square images, or not all of it or of the predictor's scores is finite.
        """
        return self._answer(check_images(x, self.manifest['in_chans']))[0]

    def predict_resolution(self, x: Array) -> NDArray[np.int64]:
        """Choose a candidate for each image.

        Args:
            x: Normalized images, (B, C, S, S).

        Returns:
            Indices into ``resolutions``, (B,); where it stopped in a cascade, all 0 in the pretrain stage, -1 where a
            predictor's scores are not finite.

        Raises:
            ValueError: If x is not a batch of square images, or not all of it is finite.
        """
        x = check_images(x, self.manifest['in_chans'])
        return self._climb(x)[1] if self._climbs else self._choose(x)

    def forward_at(self, x: Array, choice: int | NDArray[np.integer[Any]]) -> Array:
        """Classify at given resolutions, without the router.

        Args:
            x: Normalized images, (B, C, S, S).
            choice: Index into ``resolutions`` for all images, or one for each, (B,) integers.

        Returns:
            Logits, (B, num_classes).

        Raises:
            ValueError: If x is not a batch of square images, not all of it is finite, or a choice is not a candidate.
        """
        x = check_images(x, self.manifest['in_chans'])
        return self._route(x, check_choices(choice, len(x), len(self.resolutions)))

    def classify(
            self,
            images: Iterable[str | os.PathLike[str] | Image.Image | Array],
            topk: int = 1,
            batch_size: int = 32,
    ) -> list[Classification]:
        """Say what is in images, each at the resolution that the model chooses for it.

        Args:
            images: Image files, Pillow's images, or what `prepare` made of them.
            topk: Number of labels for each image; all labels if there are fewer.
            batch_size: Images that are routed together.

        Returns:
            One result for each image.

        Raises:
            UnreadableImageError: If a file cannot be read.
            ValueError: If the model has no classifier or gives scores that are not finite, or an argument is out of
                range.
        """
        for name, value in (('topk', topk), ('batch_size', batch_size)):
            if value < 1:
                raise ValueError(f'Invalid {name} {value}: use at least 1.')
        if not self.labels:
            raise ValueError('The model has no classifier (num_classes=0), so there is nothing to classify.')
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        found: list[Classification] = []
        pending: list[Array] = []
        for image in images:
            pending.append(image if isinstance(image, np.ndarray) else self.prepare(image))
            if len(pending) == batch_size:
                found += self._classify(np.stack(pending), topk)
                pending = []
        if pending:
            found += self._classify(np.stack(pending), topk)
        return found

    def prepare(self, image: str | os.PathLike[str] | Image.Image) -> Array:
        """Make an image the input of the model, as timm prepares it for the model's evaluation.

        Args:
            image: An image file of any format that Pillow can read, or one of Pillow's images.

        Returns:
            The normalized image, (C, S, S), S the largest resolution.

        Raises:
            UnreadableImageError: If it cannot be read.
            ValueError: If the model takes neither RGB nor grey images.
        """
        return prepare(image, self.manifest['preprocessing'], self._reducing_gap)

    def _classify(self, x: Array, topk: int) -> list[Classification]:
        logits, choice = self._answer(check_images(x, self.manifest['in_chans']))
        if not np.isfinite(logits).all():
            raise ValueError('The model gives scores that are not finite: its weights are damaged.')
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = odds / odds.sum(axis=1, keepdims=True)
        best = np.argsort(-probabilities, axis=1, kind='stable')[:, :topk]
        paid = 'total_flops' if self._predictor or self._climbs else 'backbone_flops'
        costs = [row[paid] for row in self.manifest['costs']]
        return [
            Classification(
                tuple(self.labels[k] for k in indices), tuple(float(p[k]) for k in indices), self.resolutions[j],
                costs[j])
            for indices, p, j in zip(best, probabilities, choice.tolist(), strict=True)
        ]

    def _answer(self, x: Array) -> tuple[Array, NDArray[np.int64]]:
        """Logits of each image, and its choice."""
        if self._climbs:
            return self._climb(x)
        choice = self._choose(x)
        check_choices(choice, len(x), len(self.resolutions))
        return self._route(x, choice), choice

    def _choose(self, x: Array) -> NDArray[np.int64]:
        """The predictor's choices, -1 where its scores are not finite; the largest without one."""
        if self._predictor is None:
            return np.zeros(len(x), np.int64)
        scores = self._run(self._predictor, x, np.arange(len(x)), self.manifest['predictor_size'])
        return np.where(np.isfinite(scores).all(axis=1), scores.argmax(axis=1), -1)

    def _route(self, x: Array, choices: NDArray[np.integer[Any]]) -> Array:
        """Logits of each image at its choice."""
        rows = [np.flatnonzero(choices == j) for j in range(len(self.resolutions))]
        parts = [
            self._run(program, x, rows_j, side)
            for program, rows_j, side in zip(self._branches, rows, self.resolutions, strict=True) if len(rows_j)]
        grouped = np.concatenate(parts)
        logits = np.empty_like(grouped)
        logits[np.concatenate(rows)] = grouped
        return logits

    def _climb(self, x: Array) -> tuple[Array, NDArray[np.int64]]:
        """From the smallest rung of a cascade up: an image stops where its answer is confident enough."""
        logits = np.empty((len(x), self.manifest['num_classes']), np.float32)
        choice = np.zeros(len(x), np.int64)
        rows = np.arange(len(x))
        for j, threshold in reversed([(0, 0.0), *enumerate(self.manifest['thresholds'], start=1)]):
            if threshold is None or not len(rows):
                continue
            answers = self._run(self._branches[j], x, rows, self.resolutions[j])
            stops = (confidence(answers) >= np.float32(threshold)) | (j == 0)
            logits[rows[stops]], choice[rows[stops]] = answers[stops], j
            rows = rows[~stops]
        return logits, choice

    def _resize(self, x: Array, size: int) -> Array:
        """Images, (B, C, S, S), at another size; what has PyTorch at hand overrides it."""
        return resize(x, size)

    def _run(self, program: runtimes.Program, x: Array, rows: NDArray[np.integer[Any]], side: int) -> Array:
        """Some of the images through one model: resized and run part by part."""
        images = x if len(rows) == len(x) else x[rows]  # all are in their order
        parts = np.array_split(images, -(-len(rows) // (self._micro_batch or len(rows))))
        outputs = [program(self._resize(part, side)) for part in parts]
        return np.concatenate(outputs) if len(outputs) > 1 else outputs[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Classify image files, and those in folders, from the command line.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        0, or 1 if a file was unreadable, or 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        description='Classify images with an exported DRNet. The exit code is 1 if a file was unreadable.')
    add = parser.add_argument
    add('images', metavar='IMAGE', nargs='+',
        help='image files, folders (all images below) and quoted patterns such as "photos/**/*.jpg"')
    add('--folder', default=str(Path(__file__).parent), help='the exported model (the folder of this script)')
    add('--topk', metavar='K', type=int, default=1, help='labels per image (%(default)s)')
    add('--batch-size', metavar='N', type=int, default=32, help='images that are routed together (%(default)s)')
    add('--threads', metavar='N', type=int, help='CPU threads (one for each core)')
    add('--runtime', choices=runtimes.RUNTIMES, help='what runs it (the one that is installed)')
    add('--provider', metavar='NAME', action='append', help='an ONNX Runtime execution provider (CPUExecutionProvider)')
    add('--reducing-gap', metavar='G', type=_reducing_gap, default=REDUCING_GAP,
        help='decode a JPEG file at G times the size needed, or the next larger one; none: all of it (%(default)s)')
    add('--json', action='store_true', help='print JSON')
    args = parser.parse_args(argv)
    ignore_warnings()
    try:
        model = OnnxDRNet(args.folder, args.provider, args.threads, None, args.runtime, args.reducing_gap)
        names = [str(path) for path in find_images(args.images)]
        found, unreadable = _classify_files(model, names, args.topk, args.batch_size)
    except (InvalidExportError, ImportError, OSError, ValueError) as error:
        print(printable(f'{parser.prog}: {error}'), file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([{'path': name, **asdict(result)} for name, result in found], indent=2, allow_nan=False))
    for name, result in () if args.json else found:
        labels = ', '.join(
            f'{label} {p:.1%}' for label, p in zip(result.labels, result.probabilities, strict=True))
        print(printable(f'{name}  {result.resolution} px  {labels}'))
    for message in unreadable:
        print(printable(f'{parser.prog}: skipped {message}'), file=sys.stderr)
    return 1 if unreadable else 0


def _reducing_gap(text: str) -> float | None:
    return None if text == 'none' else float(text)


def _classify_files(
        model: OnnxDRNet,
        names: Sequence[str],
        topk: int,
        batch_size: int,
) -> tuple[list[tuple[str, Classification]], list[str]]:
    """The files that could be read with their results, and a message for each of the others."""
    found: list[tuple[str, Classification]] = []
    unreadable = []
    for start in range(0, len(names), max(1, batch_size)):
        readable, images = [], []
        for name in names[start:start + max(1, batch_size)]:
            try:
                images.append(model.prepare(name))
                readable.append(name)
            except UnreadableImageError as error:
                unreadable.append(str(error))
        found += zip(readable, model.classify(images, topk, batch_size), strict=True)
    return found, unreadable


if __name__ == '__main__':
    sys.exit(main())
