"""Engine: what the workers of a bulk run classify with, the same for all and for a run that completes another.

An exported model is kept in the output's folder: int8 made anew, of other images, would give other answers.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..core.drnet import DRNet
from ..cost.flops import cost_table
from ..deploy.deployment import deploy
from ..deploy.engine_names import BULK_ENGINES
from ..deploy.export import export_model
from ..deploy.onnx_engine import OnnxEngine, split_name
from ..deploy.runtimes import pick_runtime
from .decoding import Decoder
from .grouping import Routed
from .listing import Listing

_FOLDER = '_engine'
"""What begins like this is not data to Parquet's readers."""

_CALIBRATION = 400
"""Images that int8 is calibrated with, a quarter of them held out."""


def check_engine(name: str, model: DRNet, num_gpus: float | None) -> str:
    """Check an engine before anything is read.

    Args:
        name: One of `BULK_ENGINES`.
        model: The model.
        num_gpus: Accelerators of each worker.

    Returns:
        Its precision, which the answers depend on.

    Raises:
        ImportError: If its runtime is not installed.
        RuntimeError: If the model cannot be deployed.
        ValueError: If there is no such engine, or it runs on no accelerator.
    """
    if name not in BULK_ENGINES:
        raise ValueError(f'Invalid engine {name!r}: use one of {", ".join(map(repr, BULK_ENGINES))}.')
    if name == 'deployed':
        deploy(model, micro_batch=0)
        return 'float32'
    if num_gpus:
        raise ValueError(f'Invalid num_gpus {num_gpus:g}: the engine {name} runs on CPUs; use 0, or engine deployed.')
    runtime, precision = split_name(name)
    pick_runtime(runtime, precision)
    return precision


def engine_files(
        name: str,
        model: DRNet,
        output: Path,
        listing: Listing,
        column: str,
        load: Callable[[Any], torch.Tensor],
) -> dict[str, bytes] | None:
    """What workers need of an engine beside the model.

    Args:
        name: One of `BULK_ENGINES`.
        model: The model.
        output: The folder of the run, where the export is kept.
        listing: The images, some of which int8 is calibrated with.
        column: Column of Parquet files that holds the images.
        load: As `image_loader` returns it.

    Returns:
        The files of an export by their names; None for a deployed model.

    Raises:
        ExportError: If the model does not export.
        ValueError: If the model does not bear the precision, or no image is readable.
    """
    if name == 'deployed':
        return None
    folder = output / _FOLDER
    if not folder.is_dir():
        _, precision = split_name(name)
        images = _some(listing, column, load) if precision == 'int8' else None
        export_model(model, folder, cost_table(model), precision=precision, calibrate=images)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start_engine(name: str, model: DRNet, files: dict[str, bytes] | None, threads: int, device: str) -> Routed:
    """Make an engine ready in a worker.

    Args:
        name: One of `BULK_ENGINES`.
        model: The model.
        files: As `engine_files` returns them.
        threads: Cores to use.
        device: Where a deployed model runs.

    Returns:
        The engine.
    """
    if files is None:
        return deploy(model.to(device).eval())
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_bytes(content)
        return OnnxEngine(folder, model, name, threads)


def _some(listing: Listing, column: str, load: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """Images at even distances."""
    number = min(len(listing), _CALIBRATION)
    places: list[Any] = []
    for i in range(number):
        n = i * len(listing) // number
        places += listing.locations(n, n + 1)
    decoded = Decoder(load, column, torch.get_num_threads())(places)
    images = [image for image in decoded if isinstance(image, torch.Tensor)]
    if not images:
        raise ValueError(f'Invalid inputs: none of {number} images to calibrate int8 with is readable.')
    return torch.stack(images)
