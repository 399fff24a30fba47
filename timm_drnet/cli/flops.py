"""``timm-drnet flops``: what each resolution costs."""

import argparse
import dataclasses
import json

from ..cost.flops import cost_table
from .common import Subparsers, add_model_arguments, load_model


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Describe the command."""
    text = 'show the FLOPs of every resolution, and the parameters'
    parser = commands.add_parser('flops', help=text, description=f'{text[0].upper()}{text[1:]}.')
    add_model_arguments(parser, positional=True)
    parser.add_argument('--json', action='store_true', help='print JSON')
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the cost table."""
    model = load_model(args.model, args.num_classes, pretrained=False, **args.model_kwargs)
    rows = cost_table(model)
    parameters = {
        'backbone': sum(p.numel() for p in model.branch(0).parameters()),
        'predictor': sum(p.numel() for name, p in model.named_parameters() if name.startswith('predictor.')),
        'total': sum(p.numel() for p in model.parameters()),
    }
    if args.json:
        print(json.dumps({
            'model': args.model, 'parameters': parameters, 'rows': [dataclasses.asdict(row) for row in rows],
        }, indent=2))
        return 0
    print(f'{args.model}: multiply-accumulates of convolutions and linear layers, for one image')
    print(f'{"resolution":>10}  {"backbone":>12}  {"predictor":>12}  {"total":>12}  {"fraction":>8}')
    for row in rows:
        flops = '  '.join(f'{n / 1e6:>10.1f} M' for n in (row.backbone_flops, row.predictor_flops, row.total_flops))
        print(f'{row.resolution:>7} px  {flops}  {row.fraction:>8.3f}')
    extra = parameters['total'] - parameters['backbone'] - parameters['predictor']
    print(f'{parameters["total"]:,} parameters: backbone {parameters["backbone"]:,},'
          f' predictor {parameters["predictor"]:,}, further norms {extra:,}')
    return 0
