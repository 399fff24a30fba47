"""The JSON of ``timm-drnet validate``, read back."""

import copy
import dataclasses
import json

import pytest
import torch

from timm_drnet.evaluate.results import Results
from timm_drnet.evaluate.validation import validate


@pytest.fixture
def model(tiny, images, spread_choices):
    """A model that sends images to each resolution."""
    spread_choices(tiny, images(9))
    return tiny


@pytest.fixture
def report(model, images):
    """What the command writes for nine images."""
    result = validate(model, [(images(9), torch.arange(9) % 5)])
    return json.loads(json.dumps({
        'model': 'drnet', 'checkpoint': 'last.pth.tar', 'data': 'photos', 'dataset': '', 'split': 'val', 'limit': None,
        'img_size': 64, 'crop_pct': 0.9, 'interpolation': 'bilinear', 'amp': False, 'seed': 42,
        **dataclasses.asdict(result), 'unreadable': [{'path': 'a.png', 'reason': 'damaged'}]}))


def change(report, path, value):
    """A copy with another value at a path; None removes it."""
    report = copy.deepcopy(report)
    inner = report
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return report


def test_report_is_read_back(model, images, report):
    results = Results.from_report(report, model)
    assert results.validation == validate(model, [(images(9), torch.arange(9) % 5)])
    assert (results.measured, results.split, results.limit) == ('last.pth.tar', 'val', None)
    assert (results.crop_pct, results.interpolation, results.amp, results.unreadable) == (0.9, 'bilinear', False, 1)
    results = Results.from_report({**report, 'checkpoint': None, 'limit': 9, 'amp': True}, model)
    assert (results.measured, results.limit, results.amp) == ('drnet', 9, True)


def test_parts_that_need_not_be_there(model, report):
    report['resolutions'][0]['routed'] = report['verdict'] = None
    found = Results.from_report(report, model).validation
    assert (found.resolutions[0].routed, found.verdict) == (None, None)


@pytest.mark.parametrize(('args', 'words'), [
    ({'num_classes': 6}, 'classes 5 and not 6'),
    ({'resolutions': (64, 32)}, r'resolutions \(64, 48, 32\) and not \(64, 32\)'),
    ({'stage': 'pretrain'}, 'stage joint and not pretrain'),
    ({'router': 'cascade'}, 'router predictor and not cascade'),
    ({'backbone': 'test_efficientnet'}, 'GFLOPs 0.0164, .* and not 0.0'),
])
def test_results_of_another_model_are_refused(make_tiny, report, args, words):
    with pytest.raises(ValueError, match=f'measured on another model: {words}'):
        Results.from_report(report, make_tiny(**args))


@pytest.mark.parametrize(('path', 'value'), [
    (['dynamic'], None), (['dynamic', 'top1'], None), (['dynamic', 'top1'], 'high'), (['dynamic', 'top1'], True),
    (['dynamic', 'top5'], float('nan')), (['resolutions'], 3), (['resolutions', 1, 'held'], None), (['random'], None),
    (['random', 'std', 'top1'], '0'), (['images'], float('inf')), (['checkpoint'], None), (['unreadable'], None),
    (['limit'], 'all'), (['router'], None), (['verdict', 'lots', 'low'], None), (['verdict', 'sentence'], 3),
    (['images'], 9.5), (['static_line'], {}),
])
def test_other_json_is_refused(model, report, path, value):
    with pytest.raises(ValueError, match='^not the JSON of timm-drnet validate$'):
        Results.from_report(change(report, path, value), model)


def test_results_of_a_cascade(make_cascade, images):
    model = make_cascade()
    result = validate(model, [(images(30), torch.arange(30) % 5)])
    report = {
        'model': 'drnet', 'checkpoint': None, 'split': 'val', 'limit': None, 'crop_pct': 1, 'interpolation': 'bicubic',
        'amp': False, 'unreadable': [], **dataclasses.asdict(result)}
    assert Results.from_report(json.loads(json.dumps(report)), model).validation == result


@pytest.mark.parametrize('report', [None, [], {}, 'text', {'model': 'drnet', 'rows': []}])
def test_no_report_at_all(model, report):
    with pytest.raises(ValueError, match='not the JSON'):
        Results.from_report(report, model)
