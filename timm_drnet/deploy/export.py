"""Export: a folder that holds the predictor and every branch as a program of its own, and what runs them.

The routing depends on the data, and one graph of everything would run every branch on every image. It stays outside:
in `OnnxDRNet` for ONNX Runtime, in `ExportedDRNet` for ``torch.export``.
"""

import ast
import copy
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..core.drnet import DRNet
from ..data import files as image_files
from ..data import pixels
from ..data.labels import check_labels, class_labels
from ..data.output_folder import check_output_folder, staged
from ..data.reading import data_config
from .export_card import export_card
from .exported import load_program
from .folding import fold_norms
from .manifest import FORMAT, FORMAT_VERSION, MANIFEST, PRECISIONS, manifest_digest
from .plain_view import plain_view
from .precision import check_calibration, lower_files
from .priced_predictor import priced_predictor

FORMATS = ('onnx', 'torch')

_RUNNER = (
    *(Path(__file__).with_name(f'{name}.py') for name in (
        'onnx_runner', 'arrays', 'manifest', 'preprocessing', 'runtimes')),
    Path(image_files.__file__), Path(pixels.__file__))
"""What is copied beside the ONNX files; nothing in it imports more than it needs to run them."""
_SUFFIXES = {'onnx': '.onnx', 'torch': '.pt2'}
_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
_FIRST_OPSET = 18
"""Of PyTorch's exporter; asked for an older one, it writes this one all the same."""
_TOLERANCE = 1e-3
"""How much the outputs of an exported program may differ from the model's, as a fraction of the largest."""


class ExportError(Exception):
    """A model that cannot be exported; the message names the part of it and the reason."""


def export_model(
        model: DRNet,
        out: str | os.PathLike[str],
        costs: Sequence[Any],
        format: str = 'onnx',
        opset: int | None = None,
        labels: Sequence[str] | None = None,
        name: str | None = None,
        license: str | None = None,
        progress: bool = False,
        precision: str = 'float32',
        calibrate: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Write a folder from which a DRNet runs without its Python code.

    It holds a program for the predictor, at its own size, and one for each branch, at its resolution, all for batches
    of any size; ``manifest.json``, which describes them; and for ONNX ``onnx_runner.py`` with what it imports. The
    norms are folded into the convolutions, so each branch has weights of its own. The predictor is left out in the
    pretrain stage, which does not use it, and a cascade has none.

    Every program is run and compared with the model. The folder appears when it is complete, or not at all.

    Args:
        model: A DRNet on any device. It is exported in eval mode and float32, and stays as it is.
        out: The folder to write, which must not exist or be empty.
        costs: Rows of `timm_drnet.cost_table`, to be recorded.
        format: ``onnx``, or ``torch`` for programs of ``torch.export``, which `ExportedDRNet` runs.
        opset: Version of ONNX's operators, or None for the one that PyTorch prefers.
        labels: One for each class, or None for `class_labels`.
        name: Name of the model. Default: the one in its configuration.
        license: Licence of the weights, to be recorded.
        progress: Whether to show a progress bar, if stderr is a terminal.
        precision: ``float32``; ``bf16`` or ``fp16`` for weights of two bytes, in which OpenVINO computes where the
            processor can; or ``int8``, see `timm_drnet.deploy.quantization`. All but float32 need format ``onnx``.
        calibrate: Some hundreds of images like those to come, (N, C, S, S), prepared for the model, without labels: for
            int8. A quarter of them, at most 100, are held out to measure what is lost; of fewer than 32 none are, and
            every operator becomes int8.

    Returns:
        The content of the manifest.

    Raises:
        ExportError: If a part of the model does not export, or not to the same outputs.
        ImportError: If a package is missing.
        OSError: If the folder cannot be written.
        ValueError: If an argument is out of range.
    """
    target = check_target(out, format, opset, precision)
    check_calibration(precision, calibrate, model.num_classes)
    if labels is None:
        labels = class_labels(model) if model.num_classes else ()
    check_labels(labels, model)

    with staged(target) as folder:
        files: dict[str, dict[str, Any]] = {}
        parts = _parts(model)
        for part in tqdm(parts, desc='export', unit='file', leave=False, disable=None if progress else True):
            get_module, side = parts[part]
            files[part] = _write_part(folder, part, get_module(), (model.in_chans, side, side), format, opset)
        quantization = None
        if precision != 'float32':
            quantization = lower_files(folder, list(files.values()), precision, calibrate)
        manifest = {
            'format': FORMAT,
            'format_version': FORMAT_VERSION,
            'runtime': format,
            'model': name or _name(model),
            'license': license,
            'stage': model.args.stage,
            'router': model.args.router,
            'thresholds': model.args.thresholds,
            'precision': precision,
            'quantization': quantization,
            'resolutions': model.resolutions,
            'predictor_size': model.args.predictor_size,
            'in_chans': model.in_chans,
            'num_classes': model.num_classes,
            'labels': [str(label) for label in labels],
            'preprocessing': data_config(model),
            'costs': [asdict(row) for row in costs],
            'cost_weight': model.args.cost_weight,  # the dial; it is inside the predictor's file
            'files': {'predictor': files.pop('predictor', None), 'branches': list(files.values())},
            'versions': {
                package: importlib.metadata.version(package)
                for package in ('timm-drnet', 'timm', 'torch', *(_PACKAGES if format == 'onnx' else ()))},
        }
        manifest = write_manifest(folder, manifest)
        if format == 'onnx':
            for source in _RUNNER:
                shutil.copyfile(source, folder / source.name)
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of an export, with its checksum, and the README that tells the same.

    Args:
        folder: Of the export.
        manifest: What it records.

    Returns:
        The manifest as it will be read.
    """
    manifest = dict(json.loads(json.dumps(manifest)))  # as it will be read: lists instead of tuples
    manifest['sha256'] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n', encoding='utf-8')
    (folder / 'README.md').write_text(export_card(manifest), encoding='utf-8')
    return manifest


def check_target(
        out: str | os.PathLike[str],
        format: str = 'onnx',
        opset: int | None = None,
        precision: str = 'float32',
) -> Path:
    """Check the arguments of `export_model` that can be checked without a model.

    Args:
        out: As there.
        format: As there.
        opset: As there.
        precision: As there.

    Returns:
        The absolute path of the folder.

    Raises:
        ImportError: If a package is missing.
        ValueError: If an argument is out of range.
    """
    if format not in FORMATS:
        raise ValueError(f'Invalid format {format!r}: use one of {", ".join(map(repr, FORMATS))}.')
    if precision not in PRECISIONS:
        raise ValueError(f'Invalid precision {precision!r}: use one of {", ".join(map(repr, PRECISIONS))}.')
    if format != 'onnx' and precision != 'float32':
        raise ValueError(f'Invalid precision {precision!r}: use format onnx, or float32.')
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if format == 'onnx' and missing:
        raise ImportError(f'Exporting to ONNX needs {", ".join(missing)}: pip install "timm-drnet[onnx]"')
    if opset is not None and (format != 'onnx' or not _FIRST_OPSET <= opset <= _last_opset()):
        raise ValueError(
            f'Invalid opset {opset}: use format onnx and a version from {_FIRST_OPSET} to the newest that the installed'
            ' onnx knows.')
    return check_output_folder(out)


def _parts(model: DRNet) -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """What is exported: by name, how to get it and the side of its images."""
    parts: dict[str, tuple[Callable[[], nn.Module], int]] = {}
    if model.args.uses_predictor:
        parts['predictor'] = partial(priced_predictor, model), model.args.predictor_size
    for j, side in enumerate(model.resolutions):
        parts[f'branch_{side}'] = partial(model.branch, j), side
    return parts


def _write_part(
        folder: Path,
        part: str,
        module: nn.Module,
        shape: tuple[int, int, int],
        format: str,
        opset: int | None,
) -> dict[str, Any]:
    """Write one program, check it, and describe its file."""
    # In float32, so that folding does not round to half precision.
    module = copy.deepcopy(plain_view(module)).to('cpu', torch.float32)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(x)
    if expected.ndim != 2:
        raise ExportError(
            f'{part} gives feature maps, {tuple(expected.shape)}, whose size depends on the resolution: restore pooling'
            " with model.reset_classifier(n, 'avg').")
    path = folder / f'{part}{_SUFFIXES[format]}'
    try:
        folded = fold_norms(module).eval()
        if format == 'onnx':
            _write_onnx(folded, x[:2], path, opset)
        else:
            _write_program(folded, x[:2], path)
        content = path.read_bytes()
        run = _onnx_program(content) if format == 'onnx' else load_program(content)
        pairs = [(run(x), expected), (run(x[:1]), expected[:1])]
    except (ExportError, OSError):
        raise
    except Exception as error:  # exporters raise almost anything
        raise ExportError(f'{part} does not export: {_reason(error)}') from error
    for output, wanted in pairs:
        if output.shape != wanted.shape:
            raise ExportError(f'{path.name} gives {tuple(output.shape)} where {part} gives {tuple(wanted.shape)}.')
        difference, largest = (output - wanted).abs().max(), wanted.abs().max()
        if not difference <= _TOLERANCE * largest:  # a difference may also be no number
            raise ExportError(
                f'{path.name} does not do what {part} does: outputs of up to {largest:.2g} differ by {difference:.2g}.')
    return {'name': path.name, 'side': shape[-1], 'size': len(content), 'sha256': sha256(content).hexdigest()}


def _write_onnx(module: nn.Module, x: torch.Tensor, path: Path, opset: int | None) -> None:
    program = torch.onnx.export(
        module,
        (x,),
        input_names=['images'],
        output_names=['scores'],
        opset_version=opset,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim('batch')},),
        optimize=True,
        verbose=False,
    )
    proto = program.model_proto  # type: ignore[union-attr]  # None only without dynamo
    (used,) = (entry.version for entry in proto.opset_import if not entry.domain)
    if opset not in (None, used):  # the exporter takes another one with no more than a warning
        raise ExportError(f'{path.stem} does not export to opset {opset}; use opset {used}.')
    graph = proto.graph
    _name_operators(graph)
    for described in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del described.metadata_props[:]  # among it, the paths of this machine's Python files
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _name_operators(graph: Any) -> None:
    """Name the operators of an ONNX graph by the modules that they are of, and not by numbers."""
    numbers: Counter[str] = Counter()
    for node in graph.node:
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get('pkg.torch.onnx.name_scopes')
        if scopes is not None:  # the modules from the outermost on, and what is called in the last
            module = ['', '', *ast.literal_eval(scopes)][-2].removeprefix('module.')  # a branch wraps the backbone
            name = f'{module}/{node.op_type}'
            numbers[name] += 1
            node.name = name if numbers[name] == 1 else f'{name}_{numbers[name]}'


def _write_program(module: nn.Module, x: torch.Tensor, path: Path) -> None:
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))
    content = io.BytesIO()  # given a path, PyTorch's writer ends the process where it cannot encode or write it
    torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def _onnx_program(content: bytes) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    return lambda x: torch.from_numpy(session.run(None, {'images': x.numpy()})[0])


def _last_opset() -> int:
    import onnx

    return onnx.defs.onnx_opset_version()


def _name(model: DRNet) -> str:
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    return '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag')))) or type(model).__name__


def _reason(error: BaseException) -> str:
    """The first line of the error at the root: those above it tell about the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return pixels.first_line(error)
