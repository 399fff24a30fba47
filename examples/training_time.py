r"""How long the ImageNet recipes take on given accelerators, from how fast those train the plain backbones.

    python examples/training_time.py --gpus 8 --scaling 0.84 \
        --backbone resnet50=1218 --backbone resnet101=747.9 --backbone mobilenetv2=2313

A pretrain stage runs every image at every resolution, and so does the training of a cascade; a joint stage runs it at
one of them, after the predictor. Work is counted in multiply-accumulates, where ``--measured`` does not say better:
small groups of images take longer than their share. Loading the images and validating are left out; the last column
says how many images a second have to come.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import yaml

import timm_drnet

RECIPES = Path(__file__).parent / 'recipes' / 'imagenet'
STAGES = (('1-pretrain', 'pretrain'), ('2-joint', 'joint'), ('cascade', 'cascade'))
"""Recipes, and what they train."""
IMAGES = 1_281_167  # of ImageNet-1K's training set


def relative_work(name: str, stage: str, share: float | None) -> float:
    """Work of one image in training, as a multiple of the backbone's at its largest size.

    Args:
        name: Such as resnet50.
        stage: ``pretrain``, ``cascade`` or ``joint``.
        share: Average cost of an image in the joint stage, as a fraction of that at the largest size; None if every
            resolution is drawn equally often.

    Returns:
        The multiple.
    """
    rows = timm_drnet.cost_table(timm.create_model(f'drnet_{name}'))
    everything = sum(row.fraction for row in rows)
    if stage != 'joint':
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
    add('--measured', metavar='STAGE=X', action='append', default=[],
        help="time of a step of a stage (pretrain, joint) over the plain backbone's, where it was measured")
    args = parser.parse_args(argv)
    measured = _measured(parser, args.measured)
    print('| model | stage | epochs | work per image | hours of one GPU | hours of all | images a second for all |')
    print('|---|---|---|---|---|---|---|')
    for given in args.backbone:
        name, _, speed = given.partition('=')
        total = 0.0
        for recipe, stage in STAGES:
            path = RECIPES / f'drnet_{name}-{recipe}.yaml'
            if stage == 'cascade' and not path.is_file():
                continue
            if not path.is_file() or not speed:
                parser.error(f'--backbone {given}: use NAME=IMAGES with resnet50, resnet101 or mobilenetv2')
            epochs = yaml.safe_load(path.read_text(encoding='utf-8'))['epochs']
            work = measured.get('joint' if stage == 'joint' else 'pretrain') or relative_work(name, stage, args.share)
            hours = IMAGES * epochs * work / float(speed) / 3600
            total += hours
            print(f'| drnet_{name} | {stage} | {epochs} | {work:.2f} | {hours:.1f} |'
                  f' {hours / args.gpus / args.scaling:.1f} | {float(speed) / work * args.gpus * args.scaling:,.0f} |')
            if stage == 'joint':
                print(f'| | both | | | {total:.1f} | {total / args.gpus / args.scaling:.1f} | |')
    return 0


def _measured(parser: argparse.ArgumentParser, given: Sequence[str]) -> dict[str, float]:
    found = {}
    for one in given:
        stage, _, ratio = one.partition('=')
        try:
            found[stage] = float(ratio)
        except ValueError:
            found[stage] = 0.0
        if stage not in ('pretrain', 'joint') or not found[stage] > 0:
            parser.error(f'--measured {one}: use pretrain=X or joint=X, with a positive number')
    return found


if __name__ == '__main__':
    sys.exit(main())
