"""The card that is published with a model: where its numbers come from, and what its metadata say."""

import re

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

import timm_drnet
from timm_drnet.cost.static_line import CurvePoint
from timm_drnet.cost.verdict import Comparison, Verdict
from timm_drnet.evaluate.oracle import Oracle
from timm_drnet.evaluate.results import Results
from timm_drnet.evaluate.validation import Accuracy, RandomScore, ResolutionScore, Score, Validation
from timm_drnet.hub.model_card import model_card
from timm_drnet.train.training_run import TrainingRun

ARGS = {
    'model': 'drnet', 'model_kwargs': {'alpha': 0.01, 'resolutions': (64, 48, 32)}, 'num_classes': 5,
    'input_size': [3, 64, 64], 'data_dir': '/home/someone/data', 'output': '/home/someone/output',
    'experiment': 'secret', 'initial_checkpoint': '/home/last.pth', 'class_map': '/home/someone/classes.txt',
    'wandb_project': 'secret', 'device': 'cuda:3', 'dataset': 'hfds/someone/photos', 'epochs': 20, 'batch_size': 64,
    'grad_accum_steps': 1, 'world_size': 8, 'opt': 'sgd', 'momentum': 0.9, 'weight_decay': 5e-4, 'lr': 0.05,
    'sched': 'cosine', 'decay_epochs': 30, 'decay_rate': 0.1, 'warmup_epochs': 2, 'smoothing': 0.0, 'mixup': 0.0,
    'cutmix': 1.0, 'hflip': 0.5, 'vflip': 0.0, 'aa': None, 'scale': [0.3, 1.0], 'opt_kwargs': {}, 'model_ema': True,
    'model_ema_decay': 0.99, 'amp': False, 'amp_dtype': 'bfloat16', 'crop_pct': 0.9, 'mean': None,
    'std': (0.25, 0.25, 0.25)}


def make_results(model, dynamic=71.237, idle=False, **kwargs):
    """Results in which no two numbers are alike."""
    rows = [(64, 200, 0.2, 73.111), (48, 300, 0.3, 72.222), (32, 500, 0.5, 61.333)]
    if idle:
        rows = [(64, 0, 0.0, 73.111), (48, 400, 0.4, 72.222), (32, 600, 0.6, 61.333)]
    costs = [row.backbone_flops / 1e9 for row in timm_drnet.cost_table(model)]
    joint = model.args.stage == 'joint'
    routed = joint or model.args.router == 'cascade'
    verdict = Verdict(
        'It pays.', Comparison('the static line at the same cost', 70.2468, 0.9902, 0.1, 1.9),
        Comparison('lots at the same shares', 69.1357, 2.1013, 1.1, 3.1), ('Mind the gap.',) if idle else ())
    validation = Validation(
        images=1000, stage=model.args.stage, router=model.args.router, num_classes=model.num_classes,
        k=min(5, model.num_classes),
        dynamic=Score(dynamic, 93.456, 0.00987, 0.601),
        resolutions=tuple(
            ResolutionScore(
                r, n, share, Score(top1 + 5, 95.1 + i, cost + 0.00161, 0.9 - 0.1 * i) if n and routed else None,
                Score(top1, 91.1 + i, cost, cost / costs[0]))
            for i, ((r, n, share, top1), cost) in enumerate(zip(rows, costs, strict=True))),
        random=RandomScore(Score(69.1357, 90.864, 0.00825, 0.503), Accuracy(0.421, 0.195)),
        oracle=Oracle(80.0, 0.005, 0.3, 0.006, 0.4, (1, 2, 3), 4), static_line=(CurvePoint(0.005, 61.333, '32 px'),),
        verdict=verdict if routed else None)
    return Results(**{
        'validation': validation, 'measured': 'last.pth.tar', 'split': 'validation', 'limit': None, 'crop_pct': 0.95,
        'interpolation': 'bilinear', 'amp': False, 'unreadable': 0, **kwargs})


def section(card, title):
    return re.search(f'^## {title}\n\n(.*?)(?=^## |\\Z)', card.text, re.MULTILINE | re.DOTALL)[1]


def table(text):
    """Rows of cells, without head and line."""
    rows = [line for line in text.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in re.split(r'(?<!\\)\|', row)[1:-1]] for row in rows[2:]]


@pytest.fixture
def many(make_tiny):
    """A model with more than five classes."""
    return make_tiny(num_classes=12)


def test_every_accuracy_is_that_of_the_results(many):
    card = model_card(many, 'org/name', 'mit', make_results(many), datasets=['org/photos'])
    text = section(card, 'Accuracy')
    assert text.startswith('On 1,000 images of the validation split of `org/photos`, at 64 px, crop 0.95, bilinear')
    assert '| top-1 | top-5 | GFLOPs per image | of the backbone at 64 px |' in text
    c = [f'{row.backbone_flops / 1e9:.4f}' for row in timm_drnet.cost_table(many)]
    routed = [f'{row.backbone_flops / 1e9 + 0.00161:.4f}' for row in timm_drnet.cost_table(many)]
    fractions = [f'{100 * row.fraction:.1f} %' for row in timm_drnet.cost_table(many)]
    assert table(text) == [
        ['**dynamic: each image at its predicted resolution**', '71.24 %', '93.46 %', '0.0099', '60.1 %'],
        ['of these 200 (20.0 %) at 64 px', '78.11 %', '95.10 %', routed[0], '90.0 %'],
        ['of these 300 (30.0 %) at 48 px', '77.22 %', '96.10 %', routed[1], '80.0 %'],
        ['of these 500 (50.0 %) at 32 px', '66.33 %', '97.10 %', routed[2], '70.0 %'],
        ['held at 64 px, without predictor', '73.11 %', '91.10 %', c[0], fractions[0]],
        ['held at 48 px, without predictor', '72.22 %', '92.10 %', c[1], fractions[1]],
        ['held at 32 px, without predictor', '61.33 %', '93.10 %', c[2], fractions[2]],
        ['static line at the same cost', '70.25 %', '-', '0.0099', '60.1 %'],
        ['lots at the same shares', '69.14 ± 0.42 %', '90.86 ± 0.20 %', '0.0083', '50.3 %']]
    assert text.rstrip().endswith(
        'It pays. The static line joins the model held at each resolution, and needs no router.')
    assert 'Warning' not in card.text
    assert 'No image' not in card.text


def test_costs_are_those_of_the_cost_table():
    model = timm_drnet.create_drnet('resnet50', device='meta')  # the paper's: 4.0892, 2.5030, 1.0779 G; 290.2 M
    model.to_empty(device='cpu')
    rows = table(section(model_card(model, 'org/name', 'mit'), 'Cost'))
    assert rows == [
        ['224 px', '4089.2 M', '290.2 M', '4379.4 M', '100.0 %'],
        ['168 px', '2503.0 M', '290.2 M', '2793.2 M', '61.2 %'],
        ['112 px', '1077.9 M', '290.2 M', '1368.1 M', '26.4 %']]
    details = dict(table(section(model_card(model, 'org/name', 'mit'), 'Model details')))
    assert details['parameters'].startswith('backbone 25,557,032, predictor 4,907,331, further norms ')


def test_metadata_are_read_back(many, tmp_path):
    card = model_card(many, 'org/name', 'mit', make_results(many), datasets=['org/photos', 'imagenet-1k'],
                      base_model='timm/test_resnet.r160_in1k')
    card.save(tmp_path / 'README.md')
    data = ModelCard.load(tmp_path / 'README.md').data
    found = data.to_dict()
    assert (found['license'], found['library_name']) == ('mit', 'timm')
    assert found['pipeline_tag'] == 'image-classification'
    assert {'image-classification', 'timm', 'drnet', 'dynamic-resolution', 'transformers'} == set(data.tags)
    assert (data.base_model, data.datasets, data.model_name) == (
        'timm/test_resnet.r160_in1k', ['org/photos', 'imagenet-1k'], 'name')
    assert data.metrics == ['accuracy']
    assert [(r.metric_name, r.metric_value, r.metric_type, r.task_type) for r in data.eval_results] == [
        ('Top-1 accuracy', 0.7124, 'accuracy', 'image-classification'),
        ('Top-5 accuracy', 0.9346, 'accuracy', 'image-classification')]
    assert {(r.dataset_type, r.dataset_name, r.dataset_split) for r in data.eval_results} == {
        ('org/photos', 'org/photos', 'validation')}
    assert '[timm/test_resnet.r160_in1k](https://huggingface.co/timm/test_resnet.r160_in1k)' in card.text


@pytest.mark.parametrize(('kwargs', 'datasets'), [({'limit': 1000}, ['org/photos']), ({}, [])])
def test_no_results_for_the_index_from_a_part_or_an_unnamed_data_set(many, kwargs, datasets):
    card = model_card(many, 'org/name', 'mit', make_results(many, **kwargs), datasets=datasets)
    assert card.data.eval_results is None
    assert 'model-index' not in str(card)
    assert '71.24 %' in card.text
    assert ('On the first 1,000 images' in card.text) == ('limit' in kwargs)


def test_top_5_of_five_classes_is_left_out(tiny):
    card = model_card(tiny, 'org/name', 'mit', make_results(tiny), datasets=['org/photos'])
    assert [result.metric_name for result in card.data.eval_results] == ['Top-1 accuracy']
    assert '| top-1 | GFLOPs per image |' in card.text
    assert table(section(card, 'Accuracy'))[0][1:] == ['71.24 %', '0.0099', '60.1 %']


def test_how_it_was_measured(many):
    results = make_results(many, crop_pct=0.8, interpolation='bicubic', amp=True, unreadable=3)
    text = section(model_card(many, 'org/name', 'mit', results), 'Accuracy')
    assert 'crop 0.8, bicubic, in bfloat16 (`timm-drnet validate hf-hub:org/name DATA --crop-pct 0.8 --amp`)' in text
    assert '3 more could not be read' in text
    assert 'The configuration says bilinear' in text
    text = section(model_card(many, 'org/name', 'mit', make_results(many)), 'Accuracy')
    assert '(`timm-drnet validate hf-hub:org/name DATA`):' in text
    assert 'configuration' not in text


def test_what_was_not_measured_is_not_claimed(many):
    card = model_card(many, 'org/name', 'mit', datasets=['org/photos'])
    assert section(card, 'Accuracy') == 'Not measured. `timm-drnet validate hf-hub:org/name DATA` does it.\n\n'
    assert card.data.eval_results is None
    assert card.data.to_dict().keys() == {'license', 'library_name', 'pipeline_tag', 'tags', 'datasets'}
    assert 'base_model' not in str(card)
    assert 'Training' not in card.text


def test_limits_that_the_results_show(many):
    limits = section(model_card(many, 'org/name', 'mit', make_results(many, idle=True)), 'Limits')
    assert '- No image of the measurement was run at 64 px.' in limits
    accuracy = section(model_card(many, 'org/name', 'mit', make_results(many, idle=True)), 'Accuracy')
    assert ['of these 0 (0.0 %) at 64 px', '-', '-', '-', '-'] in table(accuracy)
    assert '\n\n**Warning:** Mind the gap.\n' in accuracy


def test_cascade_is_told(make_cascade):
    model = make_cascade(num_classes=12)
    card = model_card(model, 'org/name', 'mit', make_results(model))
    assert 'sees each image at 32 px, then at 48 px, then at 64 px, and stops' in card.text
    rows = [row[0] for row in table(section(card, 'Accuracy'))]
    assert rows[0] == '**dynamic: each image where its answer is sure enough**'
    assert rows[4:] == [
        'held at 64 px', 'held at 48 px', 'held at 32 px', 'static line at the same cost', 'lots at the same shares']
    assert 'at the resolution predicted' not in card.text
    assert '| predictor |' not in card.text


def test_untrained_predictor_is_told(make_tiny):
    model = make_tiny()
    words = 'The predictor is not trained: it chooses 64 px for every image.'
    model.predictor.get_classifier().weight.data[0, 0] = 0
    assert words not in model_card(model, 'org/name', 'mit').text
    torch.nn.init.zeros_(model.predictor.get_classifier().weight)
    assert words in model_card(model, 'org/name', 'mit').text


def test_pretrain_stage_is_told(make_tiny):
    model = make_tiny(stage='pretrain', num_classes=12)
    card = model_card(model, 'org/name', 'mit', make_results(model))
    assert '**It is a model of the pretrain stage and not dynamic:**' in card.text
    assert 'every image runs at 64 px' in card.text
    assert [row[0] for row in table(section(card, 'Accuracy'))] == [
        f'held at {r} px, without predictor' for r in (64, 48, 32)]


def test_recipe_is_what_train_py_reads_and_names_no_path(make_tiny):
    run = TrainingRun(ARGS, epochs=18, averaged=True)
    card = model_card(make_tiny(alpha=0.01, eta=0.3), 'org/name', 'mit', run=run, data_config=run.data_config)
    text = section(card, 'Training')
    assert 'weights averaged over the steps (EMA) after 18 epochs' in text
    assert '`batch_size` is that of each of 8 processes.' in text
    assert 'started from the weights of an earlier training' in text
    assert yaml.safe_load(re.search('```yaml\n(.*?)```', text, re.DOTALL)[1]) == {
        'device_modules': ['timm_drnet'], 'model': 'drnet',
        'model_kwargs': {'alpha': 0.01, 'resolutions': [64, 48, 32]}, 'num_classes': 5, 'input_size': [3, 64, 64],
        'std': [0.25, 0.25, 0.25], 'dataset': 'hfds/someone/photos', 'batch_size': 64, 'epochs': 20, 'opt': 'sgd',
        'momentum': 0.9, 'weight_decay': 5e-4, 'lr': 0.05, 'sched': 'cosine', 'warmup_epochs': 2, 'scale': [0.3, 1.0],
        'hflip': 0.5, 'cutmix': 1.0, 'smoothing': 0.0, 'crop_pct': 0.9, 'model_ema': True, 'model_ema_decay': 0.99}
    assert '/home' not in str(card)
    assert 'secret' not in str(card)
    details = dict(table(section(card, 'Model details')))
    assert details['`alpha`, target of the average cost'] == '0.01 GFLOPs'
    assert details['`eta`, weight of the FLOPs loss'] == '0.3'
    assert details['`tau`, temperature'] == '1.0'
    assert details['input'] == '3 channels, 64 px, crop 0.9, bilinear'


def test_trained_cascade_is_told_without_what_trains_a_predictor(make_cascade):
    run = TrainingRun({**ARGS, 'model_kwargs': {'router': 'cascade', 'distill': 1}}, epochs=18)
    model = make_cascade(distill=1, distill_topdown=0.5)
    card = model_card(model, 'org/name', 'mit', run=run, data_config=run.data_config)
    details = dict(table(section(card, 'Model details')))
    assert details['trained'] == (
        'every image at all resolutions, their ensemble as a teacher (`distill=1`),'
        ' larger ones of smaller ones (`distill_topdown=0.5`)')
    assert not [name for name in details if 'stage' in name or 'alpha' in name or 'eta' in name or 'tau' in name]


def test_recipe_of_a_schedule_with_steps():
    def recipe(**args):
        card = model_card(model, 'org/name', 'mit', run=TrainingRun({**ARGS, **args}, epochs=1))
        return section(card, 'Training')

    model = timm_drnet.create_drnet('test_resnet', resolutions=(64,), num_classes=5)
    text = recipe(sched='step', model_ema=False, amp=True, initial_checkpoint='', world_size=1,
                  model='local-dir:/home/someone/model')
    assert 'The weights after 1 epoch of' in text
    assert 'decay_epochs: 30\n' in text
    assert 'decay_rate: 0.1\n' in text
    assert 'amp_dtype: bfloat16\n' in text
    assert 'model: local-dir:DRNET\n' in text
    for absent in ('model_ema', 'started from', 'processes', '/home'):
        assert absent not in text


def test_what_is_not_known_of_a_training_is_not_told(make_tiny):
    text = section(model_card(make_tiny(), 'org/name', 'mit'), 'Model details')
    assert 'alpha' not in text
    assert 'eta' not in text
    assert '0.02 GFLOPs' in section(model_card(make_tiny(alpha=0.02), 'org/name', 'mit'), 'Model details')


def test_labels_and_shared_norms(make_tiny):
    model = make_tiny(num_classes=12, resolution_aware_norm=False)
    labels = ['a|b', *'cdefghijklm'[:11]]
    details = dict(table(section(model_card(model, 'org/name', 'mit', labels=labels), 'Model details')))
    assert details['classes'] == r'12: a\|b, c, d, e, f, g, h, i, j, k, ...'
    assert details['candidate resolutions'] == '64, 48, 32 px, with norms shared by all'
    model = make_tiny(num_classes=2)
    model.pretrained_cfg['label_names'] = ('cat', 'dog')
    assert '| classes | 2: cat, dog |' in model_card(model, 'org/name', 'mit').text


def test_first_and_last_words():
    card = model_card(timm_drnet.create_drnet('test_resnet', num_classes=3, in_chans=1), 'org/name', 'cc-by-4.0')
    assert card.text.startswith('\n# Model card for name\n\nA [Dynamic Resolution Network](https://arxiv.org/abs/2106.')
    assert "timm.create_model('hf-hub:org/name', pretrained=True)" in card.text
    assert "convert('L')" in card.text
    assert 'under the licence `cc-by-4.0`' in card.text
    assert '@inproceedings{zhu2021dynamic,' in card.text
