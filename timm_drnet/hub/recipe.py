"""The recipe of a training: what of the arguments of timm's train.py tells others how a model came about."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.utils import yaml_dump  # type: ignore[attr-defined]  # handed on, but not listed

# Arguments of train.py that make up a recipe. Paths, devices and logging are nobody else's business.
_RECIPE = (
    'model', 'model_kwargs', 'pretrained', 'num_classes', 'in_chans', 'input_size', 'img_size', 'mean', 'std', 'gp',
    'bn_momentum', 'bn_eps', 'sync_bn', 'dataset', 'batch_size', 'grad_accum_steps', 'epochs', 'opt', 'opt_eps',
    'opt_betas', 'opt_kwargs', 'momentum', 'weight_decay', 'layer_decay', 'clip_grad', 'clip_mode', 'lr', 'sched',
    'sched_on_updates', 'warmup_epochs', 'warmup_lr', 'warmup_prefix', 'min_lr', 'cooldown_epochs', 'decay_epochs',
    'decay_milestones', 'decay_rate', 'no_aug', 'train_crop_mode', 'scale', 'ratio', 'hflip', 'vflip', 'color_jitter',
    'grayscale_prob', 'gaussian_blur_prob', 'aa', 'aug_repeats', 'reprob', 'mixup', 'cutmix', 'smoothing', 'bce_loss',
    'drop', 'drop_path', 'train_interpolation', 'interpolation', 'crop_pct', 'model_ema', 'model_ema_decay', 'amp',
    'amp_dtype', 'channels_last', 'seed')

# Left out where they do nothing: of a schedule that has no steps, of an average that is not taken, and so on.
_ONLY_WITH = {
    'decay_epochs': ('sched', ('step', 'plateau')), 'decay_milestones': ('sched', ('multistep',)),
    'decay_rate': ('sched', ('step', 'multistep', 'plateau')), 'clip_mode': ('clip_grad', None),
    'model_ema_decay': ('model_ema', None), 'amp_dtype': ('amp', None),
}

# The value at which an argument does nothing; of others, such as smoothing, a zero says something.
_OFF = {
    'grad_accum_steps': 1, 'reprob': 0, 'mixup': 0, 'cutmix': 0, 'drop': 0, 'drop_path': 0, 'aug_repeats': 0,
    'vflip': 0, 'min_lr': 0, 'cooldown_epochs': 0}


def recipe(args: Mapping[str, Any]) -> str:
    """Say how a model was trained.

    Args:
        args: All that train.py recorded in a checkpoint.

    Returns:
        Those that matter to others, as YAML that train.py reads.
    """
    chosen: dict[str, Any] = {'device_modules': ['timm_drnet']}
    for key in _RECIPE:
        value = args.get(key)
        if value is None or value is False or value in ('', [], {}) or _OFF.get(key) == value:
            continue
        if key in _ONLY_WITH:
            other, values = _ONLY_WITH[key]
            if not args.get(other) or (values is not None and args[other] not in values):
                continue
        chosen[key] = _plain(value)
    if str(chosen.get('model', '')).startswith('local-dir:'):
        chosen['model'] = 'local-dir:DRNET'
    return yaml_dump(chosen, sort_keys=False, default_flow_style=None, width=100)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
