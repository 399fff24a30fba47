"""``timm-drnet convert-mindspore``: the authors' release, written for timm."""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..data.output_folder import check_output_file, staged_file
from ..hub.mindspore.names import convert_checkpoints
from ..hub.mindspore.reader import read_checkpoint
from .output import UserError, show


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written and how to load it."""
    output = _check_output(Path(args.output), [args.classifier, args.predictor])
    state_dict = _convert(args.classifier, args.predictor)
    try:
        with staged_file(output) as file:
            save_file(state_dict, file, metadata={'format': 'pt'})
            with file.open('rb') as content:
                sha256 = hashlib.file_digest(content, 'sha256').hexdigest()
    except SafetensorError as error:
        raise UserError(f'{output}: cannot be written ({error}); name another file') from error
    parameters = sum(
        tensor.numel() for name, tensor in state_dict.items() if name.endswith(('.weight', '.bias')))
    overlay: dict[str, str | int] = {'file': args.output}
    num_classes = len(state_dict['backbone.fc.bias'])
    if num_classes != 1000:
        overlay['num_classes'] = num_classes
    show(
        f'{args.output}: {len(state_dict)} tensors, {parameters:,} parameters, {output.stat().st_size:,} bytes,'
        f' sha256 {sha256}',
        f"timm.create_model('drnet_resnet50', pretrained=True, pretrained_cfg_overlay={overlay})")
    return 0


def _check_output(output: Path, inputs: list[str]) -> Path:
    """Refuse a file that could not be written, before the work is done."""
    if output.suffix != '.safetensors':
        raise UserError(f'{output}: cannot write this format; use a name that ends in .safetensors')
    if output.resolve() in {Path(name).resolve() for name in inputs}:
        raise UserError(f'{output}: this is one of the files to convert; give another file')
    return check_output_file(output, 'OUT')


def _convert(classifier: str, predictor: str) -> dict[str, torch.Tensor]:
    try:
        return convert_checkpoints(read_checkpoint(classifier), read_checkpoint(predictor))
    except OSError as error:
        raise UserError(f'{error.filename}: {error.strerror}; give a .ckpt file of MindSpore') from error
    except ValueError as error:
        raise UserError(str(error)) from error
