"""Configurations: which networks are trained how, as rows that may start where another row ends.

A row's fingerprint covers everything that can change its numbers, so that no result outlives a change of its options.
"""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_TOP = (
    'title', 'setting', 'findings', 'seeds', 'reference', 'environment', 'train', 'backbone', 'drnet', 'validate',
    'rows')
_OWN = ('kind', 'start', 'measure', 'dial')  # keys of a row that are not for train.py
_OURS = (  # options of train.py that the driver gives itself
    'data', 'data_dir', 'output', 'experiment', 'resume', 'initial_checkpoint', 'checkpoint_hist', 'seed',
    'start_epoch')
_LENGTHEN = ('cooldown_epochs', 'warmup_prefix')  # with them train.py would not stop after `epochs`


class UserError(Exception):
    """Bad input, to be told in one line that names the argument, the value and the remedy."""


@dataclass(frozen=True)
class Row:
    """One network to train."""

    name: str
    """As the results and the tables call it."""
    kind: str
    """``backbone``, a plain timm model, or ``drnet``."""
    start: str | None
    """The row whose last checkpoint it starts from."""
    measured: bool
    """Whether it is a result, and not only a stage on the way to others."""
    dial: tuple[float, ...]
    """Averages in GFLOPs that the trained model is measured at besides, by its dial."""
    options: dict[str, Any]
    """Of train.py, by their names in a configuration file of train.py."""

    @property
    def epochs(self) -> int:
        """Epochs of this row alone, without those of the row it starts from."""
        return int(self.options['epochs'])

    @property
    def work(self) -> str:
        """What an epoch does; epochs of the same work take about the same time."""
        options = self.options
        return f'{options["model"]} {options.get("model_kwargs", {}).get("stage", "")} {options.get("input_size")}'


@dataclass(frozen=True)
class Configuration:
    """Everything that one configuration file says."""

    name: str
    """Of the file, without suffix."""
    title: str
    """For the report."""
    setting: tuple[str, ...]
    """What readers of the report must know, one sentence or two each."""
    findings: tuple[str, ...]
    """What was looked into, where claims did not hold; for the report, too."""
    seeds: tuple[int, ...]
    """Of train.py."""
    reference: str
    """The plain row whose FLOPs are 100 %."""
    environment: dict[str, str]
    """Environment variables of train.py."""
    validate: dict[str, Any]
    """Options of ``timm-drnet validate``."""
    rows: dict[str, Row]
    """In the order in which they are worked through."""

    def chain(self, name: str) -> list[Row]:
        """The rows that lead to one, itself last."""
        row = self.rows[name]
        return [*(self.chain(row.start) if row.start else ()), row]

    def total_epochs(self, name: str) -> int:
        """Epochs of a row and of all that lead to it."""
        return sum(row.epochs for row in self.chain(name))

    def training_fingerprint(self, name: str, seed: int) -> str:
        """Of what decides about a row's weights."""
        return _fingerprint({'seed': seed, 'options': [row.options for row in self.chain(name)]})

    def result_fingerprint(self, name: str, seed: int) -> str:
        """Of what decides about a row's numbers."""
        dial = self.rows[name].dial
        return _fingerprint({
            'training': self.training_fingerprint(name, seed), 'validate': self.validate,
            **({'dial': dial} if dial else {})})


def load_configuration(path: str | Path) -> Configuration:
    """Read a configuration file.

    Args:
        path: The YAML file.

    Returns:
        The configuration.

    Raises:
        UserError: If it cannot be read, or something in it is missing, unknown or contradictory.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8')
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; name a configuration file') from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f'{path}: not YAML: {" ".join(str(error).split())}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path}: not a configuration: give {", ".join(_TOP)}')
    if wrong := set(content) ^ set(_TOP):
        raise UserError(f'{path}: {", ".join(map(repr, sorted(wrong)))}: missing or unknown; give {", ".join(_TOP)}')
    rows = {name: _row(path, content, name, given) for name, given in content['rows'].items()}
    _check_starts(path, rows)
    reference = rows.get(content['reference'])
    if reference is None or reference.kind != 'backbone':
        raise UserError(f'{path}: reference: {content["reference"]!r} is not a row of kind backbone')
    return Configuration(
        name=path.stem,
        title=content['title'],
        setting=tuple(content['setting']),
        findings=tuple(content['findings']),
        seeds=tuple(content['seeds']),
        reference=content['reference'],
        environment={name: str(value) for name, value in content['environment'].items()},
        validate=content['validate'],
        rows=rows,
    )


def _row(path: Path, content: Mapping[str, Any], name: str, given: Mapping[str, Any]) -> Row:
    """A row with the options that it shares with others."""
    kind = given.get('kind')
    if kind not in ('backbone', 'drnet'):
        raise UserError(f'{path}: row {name!r}: kind {kind!r}: use backbone or drnet')
    layers = [content['train'], content[kind], {key: value for key, value in given.items() if key not in _OWN}]
    options: dict[str, Any] = {}
    for layer in layers:
        kwargs = {**options.get('model_kwargs', {}), **layer.get('model_kwargs', {})}
        options = {**options, **layer, **({'model_kwargs': kwargs} if kwargs else {})}
    for key in (*_OURS, *_LENGTHEN):
        if key in options:
            why = 'reproduce.py gives it itself' if key in _OURS else 'reproduce.py counts on `epochs` alone'
            raise UserError(f'{path}: row {name!r}: {key}: leave it out, {why}')
    for key in ('model', 'epochs', 'num_classes', 'input_size'):
        if key not in options:
            raise UserError(f'{path}: row {name!r}: {key} is missing: give it here, or to all rows under `train`')
    dial = tuple(given.get('dial', ()))
    if dial and kind != 'drnet':
        raise UserError(f'{path}: row {name!r}: dial: only a drnet has one')
    return Row(name, kind, given.get('start'), given.get('measure', True), dial, options)


def _check_starts(path: Path, rows: Mapping[str, Row]) -> None:
    """A row starts from one above it: that is the order of work, and there can be no circle."""
    above: set[str] = set()
    for row in rows.values():
        if row.start is not None and row.start not in above:
            raise UserError(f'{path}: row {row.name!r}: start: {row.start!r} is not the name of a row above it')
        above.add(row.name)


def _fingerprint(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as arguments of a command line, those that are false or none left out.

    Args:
        options: By their names with underscores, as in a configuration file.

    Returns:
        The arguments.
    """
    result = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        result.append('--' + name.replace('_', '-'))
        if isinstance(value, Mapping):
            result += [f'{key}={_literal(one)}' for key, one in value.items()]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            result += [str(one) for one in value]
        elif value is not True:
            result.append(str(value))
    return result


def _literal(value: Any) -> str:
    """A value as timm's KEY=VALUE arguments are read: a Python literal, or else a string."""
    if isinstance(value, list):
        return repr(tuple(value)).replace(' ', '')
    if isinstance(value, str):
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return repr(value)
