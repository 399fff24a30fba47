"""The recipes build the model, optimizer and schedule that they promise."""

import runpy
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

import timm_drnet

RECIPES = Path(__file__).parents[2] / 'examples' / 'recipes'
FILES = sorted(RECIPES.rglob('*.yaml'))
IMAGENET = [f for f in FILES if f.parent.name == 'imagenet']

# What train.py passes on where a recipe says nothing.
DEFAULTS = {
    'opt_eps': None, 'opt_betas': None, 'layer_decay': None, 'layer_decay_min_scale': 0, 'opt_kwargs': {},
    'layer_decay_no_opt_scale': None, 'sched_on_updates': False, 'lr_noise': None, 'lr_noise_pct': 0.67,
    'lr_noise_std': 1.0, 'seed': 42, 'lr_cycle_mul': 1.0, 'lr_cycle_decay': 0.5, 'lr_cycle_limit': 1, 'lr_k_decay': 1.0,
    'warmup_lr': 1e-5, 'min_lr': 0, 'decay_epochs': 90, 'decay_milestones': [90], 'warmup_epochs': 5,
    'warmup_prefix': False, 'cooldown_epochs': 0, 'patience_epochs': 10, 'decay_rate': 0.1,
}


def build(path):
    recipe = yaml.safe_load(path.read_text())
    args = Namespace(**{**DEFAULTS, **recipe})
    with torch.device('meta'):
        model = timm.create_model(args.model, num_classes=args.num_classes, **recipe.get('model_kwargs', {}))
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=10)
    return recipe, model, optimizer, scheduler, epochs


def rate(scheduler, optimizer, epoch):
    scheduler.step(epoch)
    return max(group['lr'] for group in optimizer.param_groups)


def test_there_are_two_stages_for_each_model():
    assert {f.stem for f in IMAGENET} == {'drnet_resnet50-cascade', *(
        f'drnet_{name}-{stage}' for name in ('resnet50', 'resnet101', 'mobilenetv2')
        for stage in ('1-pretrain', '2-joint'))}


def test_cascade_takes_the_work_of_both_stages():
    work = runpy.run_path(str(RECIPES.parent / 'training_time.py'))['relative_work']
    pretrain, joint, cascade = (
        yaml.safe_load((RECIPES / 'imagenet' / f'drnet_resnet50-{name}.yaml').read_text())
        for name in ('1-pretrain', '2-joint', 'cascade'))
    both = pretrain['epochs'] * work('resnet50', 'pretrain', None) + joint['epochs'] * work('resnet50', 'joint', None)
    assert cascade['epochs'] * work('resnet50', 'pretrain', None) == pytest.approx(both, rel=0.01)
    same = {key for key in pretrain if pretrain[key] == cascade[key]}
    assert pretrain.keys() - same == {'model_kwargs', 'epochs', 'decay_epochs', 'experiment'}


@pytest.mark.parametrize('path', FILES, ids=lambda f: f.stem)
def test_recipe_builds(path):
    recipe, model, optimizer, _, epochs = build(path)
    assert epochs == recipe['epochs']
    if isinstance(model, timm_drnet.DRNet):
        assert recipe['device_modules'] == ['timm_drnet']
        assert recipe['input_size'][1] == model.resolutions[0]
        assert ('joint' in path.stem) == model.args.uses_predictor
        trained = {id(p) for group in optimizer.param_groups for p in group['params']}
        assert trained == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize('name', ['resnet50', 'resnet101'])
@pytest.mark.parametrize(('stage', 'epochs', 'decay'), [('1-pretrain', 70, 20), ('2-joint', 100, 30)])
def test_resnet_schedules_are_those_of_section_4_1(name, stage, epochs, decay):
    recipe, _, optimizer, scheduler, total = build(RECIPES / 'imagenet' / f'drnet_{name}-{stage}.yaml')
    assert (total, recipe['batch_size'], recipe['weight_decay'], recipe['momentum']) == (epochs, 256, 1e-4, 0.9)
    assert not optimizer.defaults['nesterov']
    assert rate(scheduler, optimizer, 0) < 0.01  # warmup
    for epoch in range(3, epochs):
        assert rate(scheduler, optimizer, epoch) == pytest.approx(0.1 * 0.1 ** (epoch // decay))


@pytest.mark.parametrize('path', [f for f in IMAGENET if 'joint' in f.stem], ids=lambda f: f.stem)
def test_imagenet_joint_recipes_train_the_predictor_at_a_tenth(path):
    recipe, model, optimizer, scheduler, _ = build(path)
    scheduler.step(recipe['warmup_epochs'] + 1)
    scheduler.step_update((recipe['warmup_epochs'] + 1) * 10)
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    predictor = {rates[id(p)] for p in model.predictor.parameters()}
    backbone = {rates[id(p)] for p in model.backbone.parameters()}
    assert len(predictor) == len(backbone) == 1
    assert predictor.pop() == pytest.approx(0.1 * backbone.pop())


def test_training_time(capsys):
    program = runpy.run_path(str(RECIPES.parent / 'training_time.py'))
    assert program['main'](['--gpus', '8', '--scaling', '0.5', '--backbone', 'resnet50=1000']) == 0
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    # 70 and 100 epochs of 1,281,167 images; G multiply-accumulates at 224, 168 and 112 px, and of the predictor.
    pretrain = 70 * 1281.167 / 3600 * (4.0892 + 2.5030 + 1.0779) / 4.0892
    joint = 100 * 1281.167 / 3600 * ((4.0892 + 2.5030 + 1.0779) / 3 + 0.2902) / 4.0892
    cascade = 107 * pretrain / 70
    hours = [pretrain, joint, pretrain + joint, cascade]
    assert [float(row[4]) for row in rows[2:]] == pytest.approx(hours, abs=0.06)
    assert [float(row[5]) for row in rows[2:]] == pytest.approx([each / 4 for each in hours], abs=0.06)
    # 4,000 a second of the plain backbone, on 8 GPUs at half their speed.
    assert float(rows[2][6].replace(',', '')) == pytest.approx(4000 * 4.0892 / (4.0892 + 2.5030 + 1.0779), abs=0.6)


def test_training_time_as_measured(capsys):
    """256 images of a plain ResNet-50 in 54.4 ms on an H100, of its stages in 106.1 and 59 ms: docs/speed.md."""
    program = runpy.run_path(str(RECIPES.parent / 'training_time.py'))
    words = ['--gpus', '1', '--backbone', f'resnet50={256 / 0.0544}', '--measured', f'pretrain={106.1 / 54.4}']
    assert program['main']([*words, '--measured', f'joint={59 / 54.4}']) == 0
    rows = [line.split('|')[1:-1] for line in capsys.readouterr().out.splitlines()]
    steps = 1_281_167 / 256 / 3600
    pretrain, joint, cascade = 70 * steps * 0.1061, 100 * steps * 0.059, 107 * steps * 0.1061
    assert [float(row[4]) for row in rows[2:]] == pytest.approx([pretrain, joint, pretrain + joint, cascade], abs=0.06)


@pytest.mark.parametrize(('words', 'told'), [
    (['--backbone', 'resnet50'], '--backbone resnet50: use NAME=IMAGES'),
    (['--backbone', 'resnet18=5'], '--backbone resnet18=5: use NAME=IMAGES'),
    (['--backbone', 'resnet50=5', '--measured', 'joint=x'], '--measured joint=x: use pretrain=X or joint=X'),
    (['--backbone', 'resnet50=5', '--measured', 'both=1'], '--measured both=1: use pretrain=X or joint=X')])
def test_training_time_of_what_is_not_known(words, told, capsys):
    program = runpy.run_path(str(RECIPES.parent / 'training_time.py'))
    with pytest.raises(SystemExit) as stop:
        program['main'](words)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
