"""Measure what each precision of an export costs in accuracy, by ONNX Runtime and by OpenVINO, as JSON.

    python examples/compare_precisions.py VALIDATION --calibrate IMAGES --class-map SYNSETS --crop-pct 1.0

VALIDATION is a folder per class; IMAGES need no labels.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_drnet
from timm_drnet.data.datasets import open_labelled_images
from timm_drnet.data.labelled import make_loader
from timm_drnet.data.reading import Unreadable, data_config, image_loader, read_some
from timm_drnet.deploy.export import export_model
from timm_drnet.deploy.manifest import PRECISIONS
from timm_drnet.deploy.onnx_runner import OnnxDRNet
from timm_drnet.deploy.runtimes import RUNTIMES


def answers(runner: OnnxDRNet, batches: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The class that a runner gives each image, and the index of the resolution."""
    choices = [runner.predict_resolution(x) for x in batches]
    logits = [runner.forward_at(x, choice) for x, choice in zip(batches, choices, strict=True)]
    return np.concatenate(logits).argmax(axis=1), np.concatenate(choices)


def main() -> int:
    """Export, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('validation', help='a folder per class')
    add('--model', default=timm_drnet.DEFAULT_MODEL, help='(%(default)s)')
    add('--calibrate', nargs='+', required=True, help='images without labels, for int8')
    add('--class-map', default='', help='file with the classes in the order of their labels')
    add('--crop-pct', type=float, help="central part of an image (the model's own)")
    add('--images', type=int, default=400, help='for int8, of which a quarter is held out (%(default)s)')
    add('--output', type=Path, help='JSON file')
    args = parser.parse_args()

    model: Any = timm.create_model(args.model, pretrained=True).eval()
    dataset = open_labelled_images(args.validation, model.num_classes, model.in_chans, class_map=args.class_map)
    loader = make_loader(dataset, data_config(model, args.crop_pct), 32)
    pairs = [(x.numpy(), y.numpy()) for x, y in dataset.batches(loader)]
    batches, target = [x for x, _ in pairs], np.concatenate([y for _, y in pairs])
    unreadable: list[Unreadable] = []
    calibrate = read_some(args.calibrate, image_loader(model), args.images, unreadable)

    rows = []
    expected = None
    with tempfile.TemporaryDirectory() as root:
        for precision in PRECISIONS:
            folder = Path(root) / precision
            manifest = export_model(
                model, folder, timm_drnet.cost_table(model), precision=precision,
                calibrate=calibrate if precision == 'int8' else None)
            for runtime in RUNTIMES:
                found, choices = answers(OnnxDRNet(folder, runtime=runtime), batches)
                expected = expected or (found, choices)
                rows.append({
                    'precision': precision, 'runtime': runtime,
                    'top1': 100 * float((found == target).mean()),
                    'same_answers': 100 * float((found == expected[0]).mean()),
                    'same_choices': 100 * float((choices == expected[1]).mean()),
                    'bytes': sum(entry['size'] for entry in manifest['files']['branches']),
                    'float_operators': [entry.get('float_operators') for entry in manifest['files']['branches']]})
                print(json.dumps(rows[-1]), flush=True)
    report = {
        'model': args.model, 'images': len(target), 'calibration_images': len(calibrate), 'crop_pct': args.crop_pct,
        'thresholds': model.args.thresholds, 'versions': manifest['versions'], 'torch': torch.__version__, 'rows': rows}
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
