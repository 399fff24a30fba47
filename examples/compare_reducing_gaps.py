"""What it does to the answers that a JPEG file is decoded at a fraction of its size: top-1 by the reducing gap.

    python examples/compare_reducing_gaps.py VALIDATION --class-map SYNSETS --crop-pct 1.0 --side 920 1350

Photographs of a folder per class are made larger, see `enlarged` of benchmark_reading.py, so that there is something to
leave out. Each is read once for each gap, so the rows are of the same photographs.
"""

import argparse
import io
import sys

import torch
from benchmark_reading import enlarged

import timm_drnet
from timm_drnet.cli.common import load_model
from timm_drnet.data.datasets import open_labelled_images
from timm_drnet.data.reading import image_loader

_BATCH = 25


def main() -> int:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('data', metavar='FOLDER', help='labelled photographs, a folder per class')
    add('--class-map', metavar='FILE', default='', help='label of each class folder: one name a line')
    add('--crop-pct', metavar='P', type=float, help="central part of an image to use (the model's own)")
    add('--model', default=timm_drnet.DEFAULT_MODEL, help='(%(default)s)')
    add('--side', metavar='PX', type=int, nargs='+', default=[920], help='short sides of the photographs (920)')
    add('--gap', metavar='G', type=float, nargs='+', default=[4, 2, 1], help='beside none (4 2 1)')
    add('--limit', metavar='N', type=int, help='only every so many, so that there are N of them')
    args = parser.parse_args()
    model = load_model(args.model).eval()
    deployed = model.deploy(micro_batch=0)
    images = open_labelled_images(args.data, model.num_classes, 3, '', 'validation', args.class_map, None)
    chosen = range(0, len(images), max(1, len(images) // (args.limit or len(images))))
    gaps = [None, *args.gap]
    loads = [image_loader(model, args.crop_pct, reducing_gap=gap) for gap in gaps]
    print('| short side | reducing gap | photographs | top-1 | right that were wrong | wrong that were right |'
          ' same answer |\n|---|---|---|---|---|---|---|')
    for side in args.side:
        answers: list[torch.Tensor] = []
        targets: list[int] = []
        for start in range(0, len(chosen), _BATCH):
            files = []
            for n in chosen[start:start + _BATCH]:
                image, target = images.read(n)
                files.append(io.BytesIO())
                enlarged(image, side / min(image.size), n).save(files[-1], 'JPEG', quality=90)
                targets.append(target)
            with torch.inference_mode():
                answers.append(torch.stack([
                    deployed(torch.stack([load(file) for file in files])).argmax(dim=1) for load in loads]))
        _show(side, gaps, torch.cat(answers, dim=1), torch.tensor(targets))
    return 0


def _show(side: int, gaps: list[float | None], answers: torch.Tensor, target: torch.Tensor) -> None:
    right = answers == target
    for gap, found, hits in zip(gaps, answers, right, strict=True):
        shown = 'none' if gap is None else f'{gap:g}'
        print(f'| {side} | {shown} | {len(target)} | {hits.float().mean():.2%} | {(hits & ~right[0]).sum()} |'
              f' {(~hits & right[0]).sum()} | {(found == answers[0]).float().mean():.1%} |', flush=True)


if __name__ == '__main__':
    sys.exit(main())
