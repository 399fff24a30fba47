"""The driver behind docs/caltech101.md, from photographs to the page, on a tiny network."""

import argparse
import json
import random
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / 'examples' / 'reproduce'))

import train_on_photographs
from photographs import page, preparing
from reproduction.configuration import load_configuration

EXAMPLE = Path(__file__).parents[1] / 'examples' / 'reproduce'
TINY = {'backbone': 'test_resnet', 'resolutions': (64, 48, 32)}
PREDICTOR = {
    'router': 'predictor', 'predictor': 'inverted_residual', 'predictor_size': 32, 'joint_resolutions': 'all',
    'predictor_loss': 'utility', 'alpha': 0.005}


@pytest.fixture
def source(tmp_path):
    """Photographs of two classes: 100 of each to train on, 10 to measure on."""
    draw = random.Random(0)
    for split, count in (('train', 100), ('val', 10)):
        for label in 'ab':
            folder = tmp_path / 'source' / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new('RGB', (70, 64), tuple(draw.randrange(256) for _ in range(3)))
                image.paste(tuple(draw.randrange(256) for _ in range(3)), (5, 5, draw.randrange(10, 60), 50))
                image.save(folder / f'{i:03}.png')
    return tmp_path / 'source'


def test_weights_to_start_from_are_those_of_the_model_that_ships():
    plain = timm.create_model('tf_efficientnet_lite0').eval()
    plain.load_state_dict(preparing.plain_weights())
    ships = timm.create_model('drnet_efficientnet_lite0.in1k', pretrained=True, resolutions=(224, 112)).eval()
    x = torch.randn(1, 3, 112, 112)
    torch.testing.assert_close(plain(x), ships.forward_at(x, 1))


def test_every_row_starts_from_the_same_weights_for_as_many_epochs():
    rows = load_configuration(EXAMPLE / 'caltech101.yaml').rows.values()
    assert len({row.epochs for row in rows}) == 1
    for row in rows:
        assert row.options['pretrained']
        assert row.options['val_split'] == 'held'
        plain = row.options['model'] == 'tf_efficientnet_lite0'
        assert row.options.get('pretrained_path') == ('WORK/plain.safetensors' if plain else None)


def test_from_photographs_to_the_page(tmp_path, source, shake, monkeypatch, capsys):
    monkeypatch.setattr(page, 'PAGE', tmp_path / 'page.md')
    monkeypatch.setattr(preparing, 'HELD_OUT', 2)
    monkeypatch.setattr('timm_drnet.adaptation.adapt.TOLERANCE', 0.05)  # or `adapt` would need some hundreds
    monkeypatch.setattr('timm_drnet.adaptation.adapt._TIMED_BATCHES', 1)
    data, work, results = tmp_path / 'photos', tmp_path / 'work', tmp_path / 'results'
    assert train_on_photographs.main(['prepare', str(source), str(data), str(work)]) == 0
    parts = {part: {p.relative_to(data / part) for p in data.glob(f'{part}/*/*')} for part in ('train', 'held', 'val')}
    assert {part: len(found) for part, found in parts.items()} == {'train': 100, 'held': 100, 'val': 20}
    assert not parts['train'] & parts['held']

    content = yaml.safe_load((EXAMPLE / 'caltech101.yaml').read_text())
    content['seeds'] = [0]
    content['backbone'] = {'model': 'test_resnet'}
    content['drnet'].update(model='drnet', input_size=[3, 64, 64], model_kwargs={**TINY, 'resolutions': [64, 48, 32]})
    content['rows'] = {
        'cascade': {'kind': 'drnet', 'measure': False, 'model_kwargs': {'distill': 1}},
        **{f'plain-{side}': {'kind': 'backbone', 'measure': False, 'input_size': [3, side, side]}
           for side in TINY['resolutions']},
        'plain-64-longer': {'kind': 'backbone', 'start': 'plain-64', 'measure': False, 'input_size': [3, 64, 64]},
        'predictor': {'kind': 'drnet', 'measure': False, 'model_kwargs': PREDICTOR}}
    content['reference'] = 'plain-64'
    (tmp_path / 'tiny.yaml').write_text(yaml.safe_dump(content, sort_keys=False))
    configuration = load_configuration(tmp_path / 'tiny.yaml')
    for name, row in configuration.rows.items():
        folder = work / 'tiny' / 'seed0' / name
        folder.mkdir(parents=True)
        kwargs = {**row.options.get('model_kwargs', {}), **({'router': 'cascade'} if name == 'cascade' else {})}
        model = shake(timm.create_model(row.options['model'], num_classes=2, **kwargs))
        with torch.no_grad():
            model.get_classifier().weight.mul_(30)
        args = argparse.Namespace(model=row.options['model'], model_kwargs=kwargs)
        torch.save({'epoch': 0, 'version': 2, 'state_dict': model.state_dict(), 'args': args}, folder / 'last.pth.tar')
        (folder / 'reproduce.json').write_text(json.dumps({
            'fingerprint': configuration.training_fingerprint(name, 0), 'starts': 1, 'seconds': 60.0,
            'processor_seconds': 120.0, 'epochs': 1}))
    measure = ['measure', str(data), str(work), '--results', str(results)]
    measure += ['--configuration', str(tmp_path / 'tiny.yaml')]
    assert train_on_photographs.main(measure) == 0
    assert train_on_photographs.main(['report', '--results', str(results)]) == 0
    text = (tmp_path / 'page.md').read_text()

    one = json.loads((results / 'cascade-seed0.json').read_text())
    top1 = [100 * one['right'][side].count('1') / 20 for side in ('64', '48', '32')]
    assert f'| 1 | {" | ".join(f"{value:.2f}" for value in top1)} | 2 |' in text
    for setting in one['routers']['cascade']:
        for i, j in enumerate(map(int, setting['choices'])):  # the answer is that of the size that it stopped at
            assert setting['right'][i] == one['right'][('64', '48', '32')[j]][i]
        assert re.search(rf'\| cascade, trained at all sizes \|.* {100 * setting["right"].count("1") / 20:.2f} ', text)
    assert 'predictor, trained beside the network, as trained' in text
    assert '`timm-drnet adapt` on' in text
    plain = json.loads((results / 'plain-64-longer-seed0.json').read_text())['right']['64'].count('1')
    assert f'| 1 | 64 px | 2, as long | {100 * (one["right"]["64"].count("1") - plain) / 20:+.2f} [' in text
    capsys.readouterr()
    assert train_on_photographs.main(measure) == 0
    assert capsys.readouterr().out == ''  # what is measured is skipped


def test_page_is_that_of_the_committed_results(tmp_path):
    page.write_page(EXAMPLE / 'results' / 'caltech101', tmp_path / 'page.md')
    assert (tmp_path / 'page.md').read_text() == page.PAGE.read_text()


def test_figures_of_the_walk_through_are_those_of_the_page():
    text = (page.PAGE.parent / 'train.md').read_text().partition('## 1. ')[0]
    measured = page.PAGE.read_text()
    figures = re.findall(r'(\d\d\.\d\d) %', text)
    assert len(figures) == 16
    for figure in figures:
        assert re.search(rf'\| {figure} [|(±]', measured), figure
