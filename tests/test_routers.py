"""The driver of docs/routers.md, on a tiny backbone."""

import json
import re
import runpy
import shlex
import statistics
import sys
from pathlib import Path

import pytest
import timm
import torch
from pictures import draw_blots
from safetensors.torch import save_file

DRIVER = Path(__file__).parents[1] / 'examples' / 'routers'


def test_the_page_is_made_of_the_results_and_its_commands_can_be_read(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DRIVER)
    report = runpy.run_path(str(DRIVER / 'report.py'))
    page = report['PAGE'].read_text(encoding='utf-8')
    monkeypatch.setitem(report['write_page'].__globals__, 'PAGE', tmp_path / 'routers.md')
    report['write_page'](DRIVER / 'results')
    assert (tmp_path / 'routers.md').read_text(encoding='utf-8') == page
    for drawn in (tmp_path / 'routers', report['PAGE'].parent / 'routers'):
        assert {path.name for path in drawn.iterdir()} == set(re.findall(r'\(routers/(.*)\)', page))
    shown = re.findall(r'Repeat: `python examples/routers/compare.py (.*)`', page)
    done = [json.loads(path.read_text())['command'] for path in sorted((DRIVER / 'results').glob('*.json'))]
    assert [*map(shlex.split, shown)] == [*map(shlex.split, done)]
    assert not any('''"'"''' in command for command in shown)


def test_a_measure_of_confidence_gains_what_it_sends_on_rightly():
    """Half of the answers are wrong, with 60 and 40 %; the others are right, with 55 and twice 22.5 %."""
    wrong, right = torch.tensor([[0.6, 0.4, 1e-9], [0.55, 0.225, 0.225]]).log().repeat(200, 1, 1).unbind(dim=1)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    rung = torch.cat([wrong, right])[order]
    labels = torch.cat([torch.ones(200), torch.zeros(200)]).long()[order]
    logits = torch.stack([torch.nn.functional.one_hot(labels, 3) * 10.0, rung], dim=1)
    compare_measures = runpy.run_path(str(DRIVER / 'confidence.py'))['compare_measures']
    gains = compare_measures(logits, logits, labels, 1)
    shares = [share / 100 for share in range(10, 81, 5)]
    expected = 100 * sum(min(s, 0.5) - max(0.0, s - 0.5) for s in shares) / len(shares)
    going = [round(400 * share) for share in shares]
    each = [sum((k < n) - (200 + k < n) for n in going) / len(going) for k in range(200)]
    error = 1.96 * 100 * statistics.stdev([*each, *200 * [0]]) / 20
    assert [gains['margin of the two likeliest'][key] for key in ('difference', 'low', 'high')] == pytest.approx(
        [expected, expected - error, expected + error], abs=1e-6)
    for name in (
            'probability at temperature 0.5',  # 0.69 and 0.75
            'learned without labels', 'learned with the labels of nine tenths'):
        assert gains[name]['difference'] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_the_page_is_made_of_what_was_measured(tmp_path, monkeypatch):
    draw_blots(tmp_path / 'test', 20, 'ab')
    draw_blots(tmp_path / 'adapt', 200, 'ab')
    plain = timm.create_model('test_resnet', num_classes=2)
    with torch.no_grad():
        plain.get_classifier().weight.mul_(20)
    save_file(plain.state_dict(), tmp_path / 'plain.safetensors')
    (tmp_path / 'docs').mkdir()
    folder = tmp_path / 'examples' / 'routers'
    folder.mkdir(parents=True)
    for path in DRIVER.glob('*.py'):
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(folder)

    def compare(*arguments):
        monkeypatch.setattr(sys, 'argv', ['compare.py', *arguments])
        runpy.run_path(str(folder / 'compare.py'), run_name='__main__')
        del sys.modules['report']

    overlay = "{'num_classes':2,'pretrained_cfg_overlay':{'input_size':(3,64,64),'crop_pct':1.0}}"
    arguments = [
        'run', 'tiny', 'test_resnet', '--checkpoint', 'plain.safetensors', '--model-kwargs', overlay, '--resolutions',
        '64', '48', '--adapt', 'adapt', '--test', 'test', '--others', 'adapt']
    compare(*arguments)
    compare('report')
    results = folder / 'results'
    found = json.loads((results / 'tiny.json').read_text())
    assert found['images'] == 20
    assert {row['router'] for row in found['rows']} == {
        'cascade untouched, 100 images', 'cascade untouched, 200 images',
        'cascade untouched, 200 images of other classes', 'cascade, norms tuned in any case', 'cascade adapted',
        'predictor on utilities'}
    page = (tmp_path / 'docs' / 'routers.md').read_text()
    for row in found['rows']:
        assert 'error' in row or f'| {row["top1"]:.2f} % |' in page
    made = {path.name: path.stat().st_mtime_ns for path in (results / 'tiny.parts').iterdir()}
    compare(*arguments)
    assert {path.name: path.stat().st_mtime_ns for path in (results / 'tiny.parts').iterdir()} == made
