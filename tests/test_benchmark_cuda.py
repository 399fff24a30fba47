"""The benchmark for cards, tried on the processor with a tiny network: every step gives its figures."""

import importlib.util
import json
import runpy
from pathlib import Path

import pytest
import torch

SMALL = [
    '--device', 'cpu', '--backbone', 'test_resnet', '--resolutions', '64', '48', '32', '--predictor-size', '32',
    '--batch-size', '12', '--repeats', '1',
]


@pytest.fixture
def script(monkeypatch):
    path = Path(__file__).parents[1] / 'examples' / 'benchmark_cuda.py'
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location('benchmark_cuda', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_steps(script, tmp_path, capsys):
    assert script.main([*SMALL, '--out', str(tmp_path), '--steps', 'inference', 'bfloat16', 'shares', 'course']) == 0
    rows = [json.loads(line) for line in (tmp_path / 'cuda.jsonl').read_text().splitlines()]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert [row['step'] for row in rows if 'error' in row] == []
    results = {row['step']: row['result'] for row in rows}
    inference = results['inference, bfloat16']
    assert inference['plain']['throughput'] == 1
    assert inference['images that ran in the cascade'] == [3, 7, 12]
    assert results['training, bfloat16, cudnn.benchmark']['joint over pretrain'] > 0
    assert len(results['joint training, bfloat16, part by part']['ms']) == 13


@pytest.mark.slow
def test_compiled(script, tmp_path):
    assert script.main([*SMALL, '--out', str(tmp_path), '--compile']) == 0
    torch.compiler.reset()
    rows = [json.loads(line) for line in (tmp_path / 'cuda.jsonl').read_text().splitlines()]
    results = {row['step']: row['result'] for row in rows}
    assert {'plain', 'routed'} <= results['compiled: routed beside plain'].keys()


def test_committed_table_is_that_of_the_committed_figures():
    root = Path(__file__).parents[1]
    rows = map(json.loads, (root / 'docs' / 'benchmarks' / 'cuda-h100.jsonl').read_text().splitlines())
    table = runpy.run_path(str(root / 'examples' / 'summarize_cuda.py'))['table']
    assert table({row['step']: row['result'] for row in rows}) in (root / 'docs' / 'speed.md').read_text()


def test_step_that_fails_is_told_and_the_next_one_runs(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.Benchmark, 'speed', lambda self, dtype: 1 / 0)
    monkeypatch.setattr(script.Benchmark, 'shares_that_vary', lambda self, dtype: 'ran')
    assert script.main([*SMALL, '--out', str(tmp_path), '--steps', 'inference', 'shares']) == 0
    _, failed, after = [json.loads(line) for line in (tmp_path / 'cuda.jsonl').read_text().splitlines()]
    assert failed['error'].startswith('ZeroDivisionError')
    assert after['result'] == 'ran'
