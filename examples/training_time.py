r"""How long the ImageNet recipes take on given accelerators, from how fast those train the plain backbones.

    python examples/training_time.py --gpus 8 --scaling 0.84 \
        --backbone resnet50=1218 --backbone resnet101=747.9 --backbone mobilenetv2=2313

A pretrain stage runs every image at every resolution, a joint stage at one of them, after the predictor. Work is
counted in multiply-accumulates. Loading the images and validating are left out.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import yaml

import timm_drnet

RECIPES = Path(__file__).parent / 'recipes' / 'imagenet'
IMAGES = 1_281_167  # of ImageNet-1K's training set


def relative_work(name: str, stage: str, share: float | None) -> float:
    """Work of one image in training, as a multiple of the backbone's at its largest size.

    Args:
        name: Such as resnet50.
        stage: ``pretrain`` or ``joint``.
        share: Average cost of an image in the joint stage, as a fraction of that at the largest size; None if every
            resolution is drawn equally often.

    Returns:
        The multiple.
    """
    rows = timm_drnet.cost_table(timm.create_model(f'drnet_{name}'))
    everything = sum(row.fraction for row in rows)
    if stage == 'pretrain':
        return everything
    return (everything / len(rows) if share is None else share) + rows[0].predictor_flops / rows[0].backbone_flops


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    add = parser.add_argument
    add('--gpus', metavar='N', type=int, default=8, help='(%(default)s)')
    add('--scaling', metavar='X', type=float, default=1.0, help='what remains of the speed of each when all work')
    add('--share', metavar='X', type=float, help='average cost of an image in the joint stage, of that at the largest'
        ' size (that of resolutions drawn equally often, as at the beginning)')
    add('--backbone', metavar='NAME=IMAGES', action='append', required=True,
        help='images per second that one GPU trains of the plain backbone: resnet50, resnet101 or mobilenetv2')
    args = parser.parse_args(argv)
    print('| model | stage | epochs | work per image | hours of one GPU | hours of all |')
    print('|---|---|---|---|---|---|')
    for given in args.backbone:
        name, _, speed = given.partition('=')
        total = 0.0
        for number, stage in enumerate(('pretrain', 'joint'), start=1):
            recipe = RECIPES / f'drnet_{name}-{number}-{stage}.yaml'
            if not recipe.is_file() or not speed:
                parser.error(f'--backbone {given}: use NAME=IMAGES with resnet50, resnet101 or mobilenetv2')
            epochs = yaml.safe_load(recipe.read_text(encoding='utf-8'))['epochs']
            work = relative_work(name, stage, args.share)
            hours = IMAGES * epochs * work / float(speed) / 3600
            total += hours
            print(f'| drnet_{name} | {stage} | {epochs} | {work:.2f} | {hours:.1f} |'
                  f' {hours / args.gpus / args.scaling:.1f} |')
        print(f'| | both | | | {total:.1f} | {total / args.gpus / args.scaling:.1f} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
