"""Measurements: what a trained row comes to, as a small JSON file that says how it was made.

A DRNet is measured by ``timm-drnet validate``. For a plain backbone the accuracy is what train.py itself measured after
the last epoch, on the same images; its FLOPs are counted by the same function.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset

from timm_drnet.cost.flops import count_flops

from .checkpoints import read_summary
from .commands import budget_command, train_command, validate_command
from .configuration import Row
from .files import read_json, write_json
from .results import result_path
from .trainings import LOG, Training, TrainingFailed, run_logged


def measure(training: Training, results: Path, lock: int) -> tuple[float, float]:
    """Measure a finished training and write its result.

    Args:
        training: The training.
        results: Folder of all results.
        lock: File descriptor for the child process.

    Returns:
        The top-1 accuracy in per cent, and that which train.py measured after the last epoch.

    Raises:
        TrainingFailed: If it cannot be measured.
    """
    configuration, row, seed, places = training.configuration, training.row, training.seed, training.places
    history = read_summary(training.folder)
    if not history or history[-1].epoch != row.epochs - 1:
        raise TrainingFailed(
            f'{training.folder / "summary.csv"}: lacks the last of {row.epochs} epochs, though its checkpoint is there;'
            ' delete this folder to train again')
    commands = [train_command(configuration, one.name, seed) for one in configuration.chain(row.name)]
    report, dial = None, []
    if row.kind == 'backbone':
        flops, largest = _plain_flops(row), _plain_flops(configuration.rows[configuration.reference])
        numbers = {
            'top1': history[-1].top1, 'top5': history[-1].top5, 'gflops': flops / 1e9, 'fraction': flops / largest,
            'images': _count_images(row, places.data),
        }
    else:
        commands.append(validate_command(configuration, row.name, seed))
        report = _validate(training, commands[-1], lock)
        for target in row.dial:
            commands.append(budget_command(configuration, row.name, seed, target))
            dial.append(_turn_dial(training, commands[-1], lock))
        numbers = {**report['dynamic'], 'images': report['images']}
    result = {
        'configuration': configuration.name,
        'row': row.name,
        'seed': seed,
        'fingerprint': configuration.result_fingerprint(row.name, seed),
        **numbers,
        'epochs': row.epochs,
        'total_epochs': configuration.total_epochs(row.name),
        'seconds': round(training.state['seconds'], 1),
        'starts': training.state['starts'],
        'history': [{key: getattr(one, key) for key in ('epoch', 'train_loss', 'top1')} for one in history],
        'options': [one.options for one in configuration.chain(row.name)],
        'commands': commands,
        'versions': {**versions(), 'train.py sha256': hashlib.sha256(places.train_script.read_bytes()).hexdigest()},
        'machine': machine(),
        'validation': report,
        'dial': dial,
    }
    write_json(result_path(results, configuration, row.name, seed), result)
    return float(numbers['top1']), history[-1].top1


def _plain_flops(row: Row) -> int:
    options = row.options
    channels, size = options['input_size'][0], options['input_size'][-1]
    model = timm.create_model(
        options['model'], num_classes=options['num_classes'], in_chans=channels, **options.get('model_kwargs', {}))
    return count_flops(model, channels, size)


def _count_images(row: Row, data: Path) -> int:
    """Of the part that train.py validates on."""
    options = row.options
    return len(create_dataset(
        options.get('dataset', ''), root=str(data), split=options.get('val_split', 'validation'), is_training=False,
        class_map=options.get('class_map', '')))


def _validate(training: Training, command: list[str], lock: int) -> dict[str, Any]:
    """The report of ``timm-drnet validate``, without this machine's folders."""
    path = training.folder / 'validation.json'
    path.unlink(missing_ok=True)
    log = training.folder / LOG
    code = run_logged(training.places.fill(command), log, training.configuration.environment, lock)
    if code or not path.exists():
        raise TrainingFailed(f'timm-drnet validate ended with exit code {code}; see the end of {log}')
    report: dict[str, Any] = read_json(path)
    return {**report, 'data': 'DATA', 'checkpoint': command[command.index('--checkpoint') + 1]}


def _turn_dial(training: Training, command: list[str], lock: int) -> dict[str, Any]:
    """What ``timm-drnet budget`` says about its target."""
    lines: list[str] = []
    log = training.folder / LOG
    code = run_logged(training.places.fill(command), log, training.configuration.environment, lock, lines.append)
    text = ''.join(lines)
    if code or '{\n' not in text:
        raise TrainingFailed(f'timm-drnet budget ended with exit code {code}; see the end of {log}')
    found, _ = json.JSONDecoder().raw_decode(text, text.index('{\n'))
    one = found['chosen']
    largest = _plain_flops(training.configuration.rows[training.configuration.reference]) / 1e9
    return {
        'target': found['target'], 'cost_weight': one['cost_weight'], 'gflops': one['cost'],
        'fraction': one['cost'] / largest, 'top1': one['top1'], 'shares': one['shares']}


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    return {
        'python': platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ('torch', 'timm', 'timm-drnet')},
    }


def machine() -> dict[str, Any]:
    """What a reader can compare times by; nothing that names this very machine."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        named = [line.partition(':')[2].strip() for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        processor = named[0] if named else processor
    return {
        'system': f'{platform.system()} {platform.machine()}',
        'processor': processor,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'gpu': torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
