"""``timm-drnet convert-mindspore``: the authors' release, written for timm."""

import argparse
import hashlib
import os
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..hub.mindspore.names import convert_checkpoints
from ..hub.mindspore.reader import read_checkpoint
from .common import Subparsers, UserError


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    text = "convert the authors' MindSpore checkpoints of a DRNet-ResNet-50"
    parser = commands.add_parser(
        'convert-mindspore', help=text,
        description=f'{text[0].upper()}{text[1:]} to weights for drnet_resnet50. MindSpore is not needed.')
    parser.add_argument('classifier', metavar='CLASSIFIER', help="the classifier's .ckpt file")
    parser.add_argument('predictor', metavar='PREDICTOR', help="the resolution predictor's .ckpt file")
    parser.add_argument('output', metavar='OUT',
                        help='the .safetensors file to write; one that exists is replaced once the new one is complete')
    return parser


def run(args: argparse.Namespace) -> int:
    """Convert, and print what was written and how to load it."""
    output = Path(args.output)
    _check_output(output, [args.classifier, args.predictor])
    state_dict = _convert(args.classifier, args.predictor)
    try:
        sha256 = _write(state_dict, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f'{output}: cannot write it ({error}); give another file') from error
    parameters = sum(
        tensor.numel() for name, tensor in state_dict.items() if name.endswith(('.weight', '.bias')))
    overlay: dict[str, str | int] = {'file': str(output)}
    num_classes = len(state_dict['backbone.fc.bias'])
    if num_classes != 1000:
        overlay['num_classes'] = num_classes
    print(f'{output}: {len(state_dict)} tensors, {parameters:,} parameters, {output.stat().st_size:,} bytes,'
          f' sha256 {sha256}')
    print(f"timm.create_model('drnet_resnet50', pretrained=True, pretrained_cfg_overlay={overlay})")
    return 0


def _check_output(output: Path, inputs: list[str]) -> None:
    """Refuse a file that could not be written, before the work is done."""
    if output.suffix != '.safetensors':
        raise UserError(f'{output}: cannot write this format; use a name that ends in .safetensors')
    if output.is_dir():
        raise UserError(f'{output}: this is a folder; give the name of a file')
    if not output.parent.is_dir():
        raise UserError(f'{output}: there is no folder {str(output.parent)!r}; create it first')
    if output.resolve() in {Path(name).resolve() for name in inputs}:
        raise UserError(f'{output}: this is one of the files to convert; give another file')
    for path in (output.parent, output):
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f'{output}: no permission to write there; give another file')


def _convert(classifier: str, predictor: str) -> dict[str, torch.Tensor]:
    try:
        return convert_checkpoints(read_checkpoint(classifier), read_checkpoint(predictor))
    except OSError as error:
        raise UserError(f'{error.filename}: {error.strerror}; give a .ckpt file of MindSpore') from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _write(state_dict: dict[str, torch.Tensor], output: Path) -> str:
    """Write the file completely or not at all, and return its sha256."""
    with tempfile.TemporaryDirectory(prefix=f'.{output.stem}-', dir=output.parent) as folder:
        temporary = Path(folder, output.name)
        temporary.touch()
        mode = temporary.stat().st_mode  # of any new file; safetensors may leave one that only its owner can read
        save_file(state_dict, temporary, metadata={'format': 'pt'})
        with temporary.open('rb') as file:
            sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
        temporary.chmod(mode)
        os.replace(temporary, output)
    return sha256
