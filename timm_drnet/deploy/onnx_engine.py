"""An exported model with the interface of the PyTorch model: what runs a DRNet by ONNX Runtime or OpenVINO here."""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.drnet import DRNet
from ..core.norm import resize
from ..data.output_folder import staged
from .arrays import Array
from .export import export_model, write_manifest
from .manifest import MANIFEST
from .onnx_runner import OnnxDRNet
from .precision import check_calibration, lower_files
from .runtimes import pick_runtime


class _Runner(OnnxDRNet):
    """A runner that resizes by PyTorch: the same within the last digits, in a fifth of the time."""

    def _resize(self, x: Array, size: int) -> Array:
        return resize(torch.from_numpy(x), size).numpy()


class OnnxEngine:
    """An exported DRNet that takes and gives tensors on the CPU.

    Args:
        folder: Of `Exports`.
        model: The DRNet that it comes from.
        name: One of `ONNX_ENGINES`.
        threads: CPU threads of one call, or None for the runtime's own choice.
        micro_batch: Images that run at once, or None for the runner's own choice.

    Raises:
        ImportError: If the runtime is not installed.
    """

    def __init__(
            self,
            folder: str | os.PathLike[str],
            model: DRNet,
            name: str,
            threads: int | None = None,
            micro_batch: int | None = None,
    ) -> None:
        self.runner = _Runner(folder, threads=threads, micro_batch=micro_batch, runtime=split_name(name)[0])
        self.resolutions = model.resolutions
        self.num_classes = model.num_classes
        self.args = model.args

    def predict_resolution(self, x: torch.Tensor) -> torch.Tensor:
        """Choices, (B,) int64, of images, (B, C, S, S)."""
        return torch.from_numpy(self.runner.predict_resolution(x.numpy()))

    def forward_at(self, x: torch.Tensor, choice: int | torch.Tensor) -> torch.Tensor:
        """Logits, (B, num_classes), of images, (B, C, S, S), at a choice, or at one for each, (B,) int64."""
        at = choice if isinstance(choice, int) else choice.numpy()
        return torch.from_numpy(self.runner.forward_at(x.numpy(), at))


class Exports:
    """Exports of one model for engines: what is exported in float32 once is rewritten in other precisions.

    The folders are there until the end of the context.

    Args:
        model: The model.
        costs: Rows of `timm_drnet.cost_table`.
        images: To calibrate int8 with, as for `timm_drnet.deploy.export.export_model`.
    """

    def __init__(self, model: DRNet, costs: Sequence[Any], images: torch.Tensor) -> None:
        self._model = model
        self._costs = costs
        self._images = images
        self._root = tempfile.TemporaryDirectory()

    def __enter__(self) -> 'Exports':
        """The exports themselves."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the folders."""
        self._root.cleanup()

    def folder(self, name: str) -> Path:
        """The export for an engine.

        Args:
            name: One of `ONNX_ENGINES`.

        Returns:
            A folder that the engine runs.

        Raises:
            ExportError: If the model does not export.
            ImportError: If the runtime, or what exports, is not installed.
            ValueError: If the model does not bear the precision.
        """
        runtime, precision = split_name(name)
        pick_runtime(runtime, precision)  # before the work is done
        original, folder = (Path(self._root.name) / each for each in ('float32', precision))
        if not original.exists():
            export_model(self._model, original, self._costs)
        if not folder.exists():
            with staged(folder) as lowered:
                shutil.copytree(original, lowered, dirs_exist_ok=True)
                manifest = json.loads((lowered / MANIFEST).read_text(encoding='utf-8'))
                files = [entry for entry in (manifest['files']['predictor'], *manifest['files']['branches']) if entry]
                images = self._images if precision == 'int8' else None
                check_calibration(precision, images, self._model.num_classes)
                quantization = lower_files(lowered, files, precision, images)
                write_manifest(lowered, {**manifest, 'precision': precision, 'quantization': quantization})
        return folder


def split_name(name: str) -> tuple[str, str]:
    """Runtime and precision of one of `ONNX_ENGINES`."""
    runtime, _, precision = name.partition('-')
    return runtime, precision or 'float32'
