"""Configurations from outside: what a ``config.json`` of the Hub or of a folder says is checked before it is used.

timm takes it as it is. A wrong type then fails somewhere else, ``num_classes: -1`` gives a random classifier, and
``crop_pct: 1e-5`` takes all memory there is.
"""

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download
from timm.data import str_to_interp_mode
from timm.models import PretrainedCfg, is_model, model_entrypoint, parse_model_name, resolve_pretrained_cfg


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names it, the field, its value and what it has to be."""


class _Rule(NamedTuple):
    check: Callable[[Any], bool]
    wanted: str


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _list(check: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list | tuple) and len(value) > 0 and length in (None, len(value)) and all(map(check, value)))


def _interpolation(value: Any) -> bool:
    try:
        str_to_interp_mode(value)
    except (KeyError, TypeError):
        return False
    return True


_TEXT = _Rule(_text, 'a string')
_OBJECT = _Rule(lambda value: isinstance(value, dict), 'an object')
_ONE_OR_MORE = _Rule(lambda value: _text(value) or _list(_text)(value), 'a string or a list of strings')
_CLASSES = _Rule(_whole(0, 1_000_000), 'a whole number from 0 to 1,000,000')
_SIDE = _Rule(_whole(1, 8192), 'a whole number from 1 to 8192')
_CHANNELS = _Rule(_whole(1, 1024), 'a whole number from 1 to 1024')
_IMAGE = _Rule(_list(_SIDE.check, 3), 'three whole numbers from 1 to 8192: channels, height and width')
_POOL = _Rule(_list(_SIDE.check), 'a list of whole numbers from 1 to 8192')
_CROP = _Rule(_number(0.1, 2), 'a number from 0.1 to 2')
_FROM_REPOSITORY = _Rule(lambda value: False, 'left out, since the weights are those beside the configuration')

_FIELDS = {
    **dict.fromkeys(
        ('source', 'hf_hub_id', 'architecture', 'tag', 'license', 'description', 'origin_url', 'paper_name'), _TEXT),
    **dict.fromkeys(('paper_ids', 'notes', 'first_conv', 'classifier'), _ONE_OR_MORE),
    **dict.fromkeys(('input_size', 'test_input_size', 'min_input_size'), _IMAGE),
    **dict.fromkeys(('pool_size', 'test_pool_size'), _POOL),
    **dict.fromkeys(('crop_pct', 'test_crop_pct'), _CROP),
    'label_names': _Rule(_list(_text), 'a list of strings, one for each class'),
    'label_descriptions': _Rule(
        lambda value: _list(_text)(list(value.values()) if isinstance(value, dict) else value),
        'an object of strings, by label'),
    **dict.fromkeys(('url', 'file', 'state_dict'), _FROM_REPOSITORY),
    'hf_hub_filename': _Rule(
        lambda value: _text(value) and value.endswith('.safetensors'), 'the name of a .safetensors file'),
    'custom_load': _Rule(lambda value: value is False, 'false'),
    'fixed_input_size': _Rule(lambda value: isinstance(value, bool), 'true or false'),
    'interpolation': _Rule(_interpolation, 'nearest, bilinear, bicubic, box, hamming or lanczos'),
    'crop_mode': _Rule(lambda value: value in ('center', 'squash', 'border'), 'center, squash or border'),
    'mean': _Rule(_list(_number(-1000, 1000)), 'a list of numbers from -1000 to 1000'),
    'std': _Rule(_list(_number(1e-3, 1000)), 'a list of numbers from 0.001 to 1000'),
    'num_classes': _CLASSES,
    'label_offset': _CLASSES,
}
"""Of timm's ``PretrainedCfg``. A field may also be null, but for those of `_NEEDED`."""

_PLACES = {'hf-hub': 'hf_hub_id', 'local-dir': 'file'}
"""Where timm notes what a configuration was read from."""

_NEEDED = ('num_classes', 'input_size')

_MODEL_ARGS = {
    'backbone': _TEXT,
    'global_pool': _TEXT,
    'in_chans': _CHANNELS,
    'num_classes': _CLASSES,
    'predictor_size': _Rule(_whole(0, 8192), 'a whole number from 0 to 8192'),
    'pretrained_strict': _Rule(lambda value: value is True, 'left out, since a part of the model would stay random'),
    'resolutions': _Rule(
        lambda value: _list(_SIDE.check)(value) and len(value) <= 64,
        'a list of at most 64 whole numbers from 1 to 8192'),
}
"""Arguments that decide how large the model becomes, or what of it is loaded. The others the model checks itself."""


def check_fields(values: Mapping[str, Any], where: str) -> None:
    """Check fields of a configuration.

    Args:
        values: Some or all fields of timm's ``PretrainedCfg``.
        where: What they were read from, for the message.

    Raises:
        ConfigError: If one is not what timm and the model expect.
    """
    known = {field.name for field in fields(PretrainedCfg)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f'{where} has a field {name!r}, which this version of timm does not know.')
        if name in _FIELDS and (value is not None or name in _NEEDED):
            _check(where, name, value, _FIELDS[name])


def check_model_args(args: Any, where: str, num_classes: int | None = None) -> None:
    """Check the arguments that a configuration gives the model.

    Args:
        args: Of the configuration.
        where: What they were read from, for the message.
        num_classes: The configuration's.

    Raises:
        ConfigError: If one is not what the model expects.
    """
    _check(where, 'model_args', args, _OBJECT)
    for name, value in args.items():
        if name in _MODEL_ARGS and value is not None:
            _check(where, f'model_args.{name}', value, _MODEL_ARGS[name])
    classes = args.get('num_classes')
    if None not in (classes, num_classes) and classes != num_classes:
        raise ConfigError(
            f'{where} contradicts itself: num_classes is {num_classes}, and model_args.num_classes is {classes}.')


def resolve_config(
        variant: str,
        pretrained_cfg: Any = None,
        overlay: dict[str, Any] | None = None,
        model_args: Any = None,
) -> PretrainedCfg:
    """timm's ``resolve_pretrained_cfg``, for configurations that may come from outside.

    Args:
        variant: Name of the model.
        pretrained_cfg: A configuration, the tag of a registered one, or None for the default.
        overlay: Fields to replace.
        model_args: Arguments that came with the configuration.

    Returns:
        The configuration.

    Raises:
        ConfigError: If it comes from the Hub or a folder, and cannot be used.
    """
    if isinstance(pretrained_cfg, dict) and pretrained_cfg.get('source') is not None:
        place = _PLACES.get(pretrained_cfg['source'], 'source')
        where = f'The config.json of {pretrained_cfg.get(place)}'
        check_fields({k: v for k, v in pretrained_cfg.items() if k not in (place, 'source')}, where)
        check_model_args(model_args or {}, where, pretrained_cfg.get('num_classes'))
    return resolve_pretrained_cfg(variant, pretrained_cfg, overlay)


def check_name(name: str) -> None:
    """Check that a name stands for a DRNet, before timm loads anything.

    Of a model in a repository or a folder the whole ``config.json`` is checked. A name that timm does not know is left
    to timm.

    Args:
        name: As timm.create_model takes it.

    Raises:
        ConfigError: If it stands for another model, or the configuration cannot be used.
        OSError: If the configuration cannot be read.
        huggingface_hub.errors.HfHubHTTPError: If there is no such repository, or no access to it.
    """
    source, place = parse_model_name(name)
    if source is None:
        if is_model(name) and not _is_drnet(name):
            raise ConfigError(f'{name} is not a DRNet; see timm.list_models("*drnet*").')
        return
    where = f'The config.json of {place}'
    if source == 'hf-hub':
        repo_id, _, revision = place.partition('@')
        path = Path(hf_hub_download(repo_id, 'config.json', revision=revision or None))
    else:
        path = Path(place, 'config.json')
        if not path.is_file():
            raise FileNotFoundError(f'there is no {path}; give a folder that timm-drnet or timm saved a model in')
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f'{where} is not JSON ({reason}).') from error
    if not isinstance(config, dict):
        raise ConfigError(f'{where} is not that of a timm model: it holds a {type(config).__name__}.')
    for field, rule in (('architecture', _TEXT), ('pretrained_cfg', _OBJECT)):
        if field not in config:
            raise ConfigError(f'{where} is not that of a timm model: it has no {field!r}.')
        _check(where, field, config[field], rule)
    if not is_model(config['architecture']) or not _is_drnet(config['architecture']):
        raise ConfigError(f'{where} is of the architecture {config["architecture"]!r}, which is not a DRNet.')
    own = {k: v for k, v in config['pretrained_cfg'].items() if k not in (_PLACES[source], 'source')}
    root = {k: config[k] for k in ('num_classes', 'label_names', 'label_descriptions') if k in config}
    check_fields({**own, **root}, where)
    check_model_args(config.get('model_args') or {}, where, root.get('num_classes', own.get('num_classes')))


def _is_drnet(model: str) -> bool:
    return model_entrypoint(model).__module__.partition('.')[0] == __name__.partition('.')[0]


def _check(where: str, name: str, value: Any, rule: _Rule) -> None:
    if not rule.check(value):
        raise ConfigError(f'{where} cannot be used: {name} is {reprlib.repr(value)}, but has to be {rule.wanted}.')
