"""``timm-drnet flops``: what each resolution costs."""

import argparse
import dataclasses
import json

from ..cost.flops import cost_table
from .common import load_model
from .output import Column, show, table


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
    extra = parameters['total'] - parameters['backbone'] - parameters['predictor']
    # What is paid beside the backbone; smaller rungs are backbones, too.
    beside = 'smaller rungs' if model.args.router == 'cascade' else 'predictor'
    columns = [
        Column('resolution', '.0f', 'px'), Column('backbone', '.1f', 'M'), Column('of largest', '.1f', '%'),
        Column(beside, '.1f', 'M'), Column('total', '.1f', 'M')]
    show(
        f'{args.model}: multiply-accumulates of convolutions and linear layers, for one image',
        *table(columns, [
            (row.resolution, row.backbone_flops / 1e6, 100 * row.fraction,
             (row.total_flops - row.backbone_flops) / 1e6, row.total_flops / 1e6)
            for row in rows]),
        f'{parameters["total"]:,} parameters: backbone {parameters["backbone"]:,},'
        f' predictor {parameters["predictor"]:,}, further norms {extra:,}')
    return 0
