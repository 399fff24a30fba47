"""The command line: every command with its arguments. What a command does is in the module of its name."""

import argparse
import os
from pathlib import Path

from ..deploy.engine_names import BULK_ENGINES, ENGINES
from ..version import __version__
from .arguments import (
    DEFAULT_MODEL,
    Parser,
    Subparsers,
    add_data_arguments,
    add_device,
    add_loading,
    add_model_arguments,
    add_model_kwargs,
    add_reducing_gap,
    at_least,
    fraction,
    non_negative_float,
    port,
    positive_float,
    positive_int,
    seed,
    threads,
)

# As the modules have them that do the work, whose import takes seconds.
EXPORT_FORMATS = ('onnx', 'torch')
PRECISIONS = ('float32', 'bf16', 'fp16', 'int8')
DTYPES = ('float32', 'bfloat16')


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``timm-drnet``, which finds the name of the command as ``command``."""
    parser = Parser(
        prog='timm-drnet', description='Dynamic input resolution for CNNs.',
        epilog='The exit code is 0; 1 where part of the input was unusable; 2 for bad input, and for output that could'
               ' not be written.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for add_command in (
            _predict, _demo, _classify, _validate, _analyze, _flops, _budget, _adapt, _bench, _export, _publish,
            _convert_mindspore, _last_checkpoint, _run):
        add_command(commands)
    return parser


def _predict(commands: Subparsers) -> None:
    text = 'classify photographs, and show the resolution chosen for each'
    parser = commands.add_parser(
        'predict', help=text, description=f'{text[0].upper()}{text[1:]}. The exit code is 1 if a file was unreadable.')
    add = parser.add_argument
    add('inputs', metavar='IMAGE', nargs='+',
        help='image files, folders (all images below) and quoted patterns such as "photos/**/*.jpg"')
    add_model_arguments(parser, positional=False)
    add('--checkpoint', metavar='FILE', help='trained weights, instead of the registered ones')
    add('--labels', metavar='FILE', help='names of the classes, one per line')
    add('--topk', metavar='K', type=positive_int, default=1, help='labels per image (%(default)s)')
    add('--batch-size', metavar='N', type=positive_int, default=32,
        help='images that are routed together (%(default)s)')
    add_device(parser)
    add_reducing_gap(parser)
    add('--save', metavar='FILE', help='draw a contact sheet, grouped by resolution: a .png or .jpg')
    add('--json', action='store_true', help='print JSON')


def _demo(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'demo', help='open a page to try a model on',
        description='Serve a page to try a model on with photographs, one or several: labels, where each stopped, FLOPs'
                    ' and milliseconds against the full size, what the network saw, and a slider for the budget.'
                    ' Ctrl+C ends it. It needs pip install "timm-drnet[demo]".')
    add = parser.add_argument
    add('model', metavar='MODEL', nargs='?', default=DEFAULT_MODEL,
        help='a name from timm.list_models("*drnet*"), hf-hub:ORG/NAME or local-dir:PATH (%(default)s)')
    add('--checkpoint', metavar='FILE', help='trained weights, instead of the registered ones')
    add('--labels', metavar='FILE', help='names of the classes, one per line')
    add('--samples', metavar='IMAGE', nargs='+', help='photographs to pick from (examples/photos, where it is)')
    add('--host', metavar='NAME', default='127.0.0.1',
        help='address to serve at; 0.0.0.0 lets other machines in (%(default)s)')
    add('--port', metavar='N', type=port, help='port to serve at (the first free one from 7860 on)')
    add('--share', action='store_true', help="also at a public address, through Gradio's servers")
    add('--no-browser', dest='browser', action='store_false', help='do not open a browser')
    add_device(parser)
    add_model_kwargs(parser)


def _classify(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'classify', help='classify any number of images into Parquet files, on Ray',
        description='Classify any number of images into a folder of Parquet files, by several processes or machines, on'
                    ' Ray Data. After an interruption the same command makes what is missing. Each image has a row,'
                    ' unreadable ones with their reason; if there are such, the exit code is 1.')
    add_model_arguments(parser)
    add = parser.add_argument
    add('--input', metavar='PATH', nargs='+', required=True, dest='inputs',
        help='folders of images or of Parquet files, Parquet files, quoted patterns such as "photos/**/*.jpg", and'
             ' addresses of such, for example s3://bucket/photos')
    add('--output', metavar='FOLDER', required=True, help='the folder to write, or to complete')
    add('--image-column', metavar='NAME', default='image', help='column of Parquet files with the images (%(default)s)')
    add('--columns', metavar='NAME', nargs='*',
        help='columns of Parquet files to carry over into the output; none with --columns alone (all but the images)')
    add('--checkpoint', metavar='FILE', help='trained weights, instead of the registered ones')
    add('--labels', metavar='FILE', help='names of the classes, one per line')
    add('--topk', metavar='K', type=positive_int, default=1, help='labels per image (%(default)s)')
    add('-b', '--batch-size', metavar='N', type=positive_int, default=32, help='images in a batch (%(default)s)')
    add('--shard-size', metavar='N', type=positive_int, default=1000,
        help='images in a file of the output, which is written when all of them are done: a run that is killed loses'
             ' those of the files it had begun (%(default)s)')
    add('--engine', choices=BULK_ENGINES, default='deployed',
        help='what runs the model: PyTorch, or ONNX Runtime or OpenVINO on CPUs (%(default)s); int8 is calibrated with'
             ' some of the images')
    add_reducing_gap(parser)
    add('-j', '--workers', metavar='N', type=positive_int,
        help='processes that classify (one for each core, or for each accelerator)')
    add('--num-gpus', metavar='N', type=non_negative_float,
        help='accelerators of each worker, such as 0.5 (1, if there are any)')
    add('--decoders', metavar='N', type=at_least(0),
        help='processes that only decode images (with accelerators: as many as there are cores left)')
    add('--address', metavar='ADDRESS', help='of a Ray cluster to join, such as auto (a Ray on this machine alone)')
    add('--json', action='store_true', help='print JSON')


def _validate(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'validate', help='measure accuracy and FLOPs on labelled images',
        description='Measure accuracy and FLOPs on labelled images: of the model, of the same model held at each of'
                    ' its resolutions, of the static line that joins these, of lots at the same shares of the'
                    ' resolutions, and of an oracle; and say whether the router pays. The exit code is 1 if an image'
                    ' was unreadable.')
    add_model_arguments(parser)
    add = parser.add_argument
    add('data', metavar='DATA', help='a folder per class, or a folder with such a folder for the split')
    add_data_arguments(parser)
    add_reducing_gap(parser)
    add('--channels-last', action='store_true', help='run in the channels_last memory format')
    add('--json', action='store_true', help='print JSON')
    add('--output', metavar='FILE', help='also write the JSON to a file')


def _analyze(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'analyze', help='write a page about the choices of resolutions on labelled images',
        description='Write a folder with a page that holds the choices of resolutions on labelled images against the'
                    ' best ones: accuracy and cost, too small and needlessly large choices, calibration, classes,'
                    ' thumbnails. images.csv, classes.csv and summary.json hold its numbers. The exit code is 1 if an'
                    ' image was unreadable.')
    add_model_arguments(parser)
    add = parser.add_argument
    add('data', metavar='DATA', help='a folder per class, or a folder with such a folder for the split')
    add('out', metavar='OUT', help='the folder to write, which must not exist or be empty')
    add_data_arguments(parser)
    add_reducing_gap(parser)
    add('--json', action='store_true', help='print the summary as JSON')


def _flops(commands: Subparsers) -> None:
    text = 'show the FLOPs of every resolution, and the parameters'
    parser = commands.add_parser('flops', help=text, description=f'{text[0].upper()}{text[1:]}.')
    add_model_arguments(parser, least_classes=0)
    parser.add_argument('--json', action='store_true', help='print JSON')


def _budget(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'budget', help='trade accuracy for cost without training',
        description='Find how to turn the dial of a trained model so that images like the given ones cost a given'
                    ' average, and print cost and shares at every position of the dial. The images need no labels;'
                    ' where they are in a folder per class, the accuracy is printed too. The exit code is 1 if an image'
                    ' was unreadable.')
    add_model_arguments(parser)
    add = parser.add_argument
    add('data', metavar='DATA', help='a folder of images, or a folder per class')
    target = parser.add_mutually_exclusive_group()
    target.add_argument('--target-gflops', metavar='G', type=positive_float,
                        help='average per image, predictor included')
    target.add_argument('--target-ms', metavar='T', type=positive_float,
                        help='average per image in milliseconds, predictor included, as measured on this device')
    add('--latency-batch-size', metavar='N', type=positive_int, default=8,
        help='batches that --target-ms is measured with (%(default)s)')
    add('--output', metavar='DIR', help='save the model with its dial there, for local-dir:DIR and timm-drnet publish')
    add('--checkpoint', metavar='FILE', help='checkpoint of train.py, or safetensors file, with the weights')
    add('--split', metavar='NAME', default='validation', help='split of a labelled folder (%(default)s)')
    add('--crop-pct', metavar='P', type=fraction, help="central part of an image to use (the model's own)")
    add('--limit', metavar='N', type=positive_int, help='only the first N images')
    add('--points', metavar='N', type=at_least(2), default=15, help='positions of the dial to print (%(default)s)')
    add_loading(parser, read='labelled images')
    add_device(parser)
    add('--json', action='store_true', help='print JSON')


def _adapt(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'adapt', help='make any timm CNN dynamic in minutes, without labels',
        description='Make a plain timm CNN dynamic, with some hundreds of photographs like those to come, which'
                    ' need no labels. The largest resolution stays the backbone to the last bit; the norms of the'
                    ' smaller ones are tuned to answer as it does, and keep that only where photographs held out show'
                    ' a gain; then a target is set. An interrupted run goes on when it is started'
                    ' again. The exit code is 1 if an image was unreadable.')
    add = parser.add_argument
    add('model', metavar='BACKBONE', help='a name from timm.list_models(), hf-hub:ORG/NAME or local-dir:PATH')
    add('data', metavar='IMAGES', nargs='+', help='folders, image files and quoted patterns')
    add('--output', metavar='DIR', required=True, help='save the model there, for local-dir:DIR and timm-drnet publish')
    add('--checkpoint', metavar='FILE', help='trained weights of the backbone, instead of the registered ones')
    add('--resolutions', metavar='PX', type=positive_int, nargs='+',
        help="candidates, largest first (1, 6/7, 5/7 and 4/7 of the backbone's own)")
    add('--target', metavar='F', type=fraction, default=0.75,
        help="average cost of an image, as a fraction of the backbone's (%(default)s)")
    add('--router', choices=('cascade', 'predictor'), default='cascade',
        help="predictor: train a tiny CNN that chooses, by how far the answers are from the largest's (%(default)s)")
    add('--epochs', metavar='N', type=at_least(0), default=4,
        help='of tuning; 0 only sets the thresholds (%(default)s)')
    add('--held-out', metavar='P', type=fraction, default=0.3, help='part of the images to hold out (%(default)s)')
    add('--limit', metavar='N', type=positive_int, help='only N images, drawn at random')
    add('--class-map', metavar='FILE', help='label of each class folder, to tell the accuracy: one name a line')
    add('--labels', metavar='FILE', help='names of the classes, one per line, to save with the model')
    add('-j', '--workers', metavar='N', type=at_least(0), default=min(4, os.cpu_count() or 1),
        help='processes that read images (%(default)s)')
    add_device(parser)
    add('--seed', metavar='N', type=seed, default=42, help='of what is drawn at random (%(default)s)')
    add('--json', action='store_true', help='print JSON')
    add_model_kwargs(parser)


def _bench(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'bench', help='measure speed',
        description='Measure speed, by one engine or several in turn: of the model, of the same model held at each of'
                    ' its resolutions, and of all branches on every image, side by side. Times are for whole batches,'
                    ' which every side runs in the pieces that serve it best.')
    add_model_arguments(parser, least_classes=0)
    add = parser.add_argument
    add('--checkpoint', metavar='FILE', help='trained weights, for --data')
    add('--mix', metavar='P,P,...', help='share of each resolution, largest first (all the same)')
    add('--data', metavar='PATH', nargs='+', help='images or folders: run each at the resolution predicted for it')
    add('-b', '--batch-size', metavar='N', type=positive_int, nargs='+', default=[1, 8, 32],
        help='images in a batch, one size or several in turn (1 8 32)')
    add('--engine', metavar='NAME', nargs='+', choices=ENGINES, default=['eager', 'deployed'],
        help=f'some of {", ".join(ENGINES)} (eager deployed)')
    add('--repeats', metavar='N', type=positive_int, default=20, help='runs of each batch in each way (%(default)s)')
    add('--threads', metavar='N', type=threads, help="threads (PyTorch's default)")
    add_device(parser)
    add('--dtype', choices=DTYPES, default='float32', help='(%(default)s)')
    add('--channels-last', action='store_true', help='run in the channels_last memory format')
    add('--results', metavar='FILE', help='JSON of timm-drnet validate for this model: its accuracies, for --plot')
    add('--plot', metavar='FILE', help='draw accuracy against time: a .png, .svg or .pdf')
    add('--json', action='store_true', help='print JSON')
    add('--output', metavar='FILE', help='also write the JSON to a file')


def _export(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'export', help='write a folder that runs with ONNX Runtime or OpenVINO, without PyTorch',
        description='Write a folder with the predictor and each branch as ONNX, a manifest that describes them, and'
                    ' onnx_runner.py, which needs only ONNX Runtime or OpenVINO, NumPy and Pillow to run them. Needs'
                    ' pip install "timm-drnet[onnx]". The exit code is 1 if an image of --calibrate was unreadable.')
    add_model_arguments(parser, least_classes=0)
    add = parser.add_argument
    add('out', metavar='OUT', help='the folder to write, which must not exist or be empty')
    add('--checkpoint', metavar='FILE', help='trained weights, instead of the registered ones')
    add('--labels', metavar='FILE', help='names of the classes, one per line')
    add('--format', choices=EXPORT_FORMATS, default='onnx',
        help='torch: programs of torch.export instead, for timm_drnet.ExportedDRNet (%(default)s)')
    add('--precision', choices=PRECISIONS, default='float32',
        help='bf16 and fp16: weights of half the size, and arithmetic where the processor has it; int8: a quarter, and'
             ' the fastest (%(default)s)')
    add('--calibrate', metavar='PATH', nargs='+',
        help='for int8: some hundreds of images like those to come, files or folders; no labels needed')
    add('--opset', metavar='N', type=positive_int, help="version of ONNX's operators (the one that PyTorch prefers)")
    add('--json', action='store_true', help='print the manifest')


def _publish(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'publish', help='put a model with its card on the Hugging Face Hub',
        description='Put a model on the Hugging Face Hub: weights as safetensors, configuration and model card in one'
                    ' commit. What train.py recorded in its checkpoint need not be given again. The token is that of'
                    ' "hf auth login" or HF_TOKEN.')
    add = parser.add_argument
    add('source', metavar='CHECKPOINT_OR_MODEL',
        help='checkpoint of train.py, safetensors file, or model as in other commands')
    add('repo_id', metavar='ORG/NAME', help='repository, created if need be')
    add('--results', metavar='FILE', help='JSON of timm-drnet validate, for the card')
    add('--labels', metavar='FILE', help="names of the classes, one per line, if not the model's own")
    add('--dataset', metavar='ID', action='append', default=[],
        help='data set by its name on the Hub, such as imagenet-1k; may be repeated, that of --results comes first')
    add('--base-model', metavar='ORG/NAME', help='model on the Hub that the training started from')
    add('--license', metavar='ID',
        help="licence of the weights (the configuration's, but for those that train.py wrote)")
    add('--private', action='store_true', help='create a private repository')
    add('--revision', metavar='BRANCH', help='existing branch to commit to (main)')
    add('--create-pr', action='store_true', help='open a pull request')
    add('--replace-card', action='store_true', help='overwrite a README.md that is in the repository')
    add('--message', metavar='TEXT', default='Add model', help='commit message (%(default)s)')
    add('--dry-run', metavar='DIR', help='only write the files there; nothing is sent')
    add('--model', metavar='NAME', help='name of the model, if the checkpoint does not record it')
    add_model_kwargs(parser)


def _convert_mindspore(commands: Subparsers) -> None:
    text = "convert the authors' MindSpore checkpoints of a DRNet-ResNet-50"
    parser = commands.add_parser(
        'convert-mindspore', help=text,
        description=f'{text[0].upper()}{text[1:]} to weights for drnet_resnet50. MindSpore is not needed.')
    add = parser.add_argument
    add('classifier', metavar='CLASSIFIER', help="the classifier's .ckpt file")
    add('predictor', metavar='PREDICTOR', help="the resolution predictor's .ckpt file")
    add('output', metavar='OUT',
        help='the .safetensors file to write; one that exists is replaced once the new one is complete')


def _last_checkpoint(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'last-checkpoint', help='find the checkpoint with which an interrupted training goes on',
        description='Print the path of the newest whole checkpoint of a training: train.py --resume "$(timm-drnet'
                    ' last-checkpoint FOLDER)".')
    parser.add_argument('folder', metavar='FOLDER', type=Path, help='into which train.py wrote its checkpoints')


def _run(commands: Subparsers) -> None:
    parser = commands.add_parser(
        'run', help="run a script of timm's with the models of this package",
        description="Run one of timm's scripts (train.py, validate.py, inference.py, benchmark.py, onnx_export.py) or"
                    ' any other with the models of this package registered. Everything behind SCRIPT is the'
                    " script's, and so is the exit code.")
    parser.add_argument('script', metavar='SCRIPT', help="its path, such as that in a clone of timm's repository")
    arguments = parser.add_argument(
        'arguments', metavar='ARGUMENT', nargs=argparse.REMAINDER, help="the script's own")
    arguments.required = False  # Python 3.11 calls it missing where SCRIPT is
