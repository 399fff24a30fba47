"""The registered models: entrypoints and their default configurations."""

import dataclasses
import posixpath
from functools import partial
from pathlib import Path
from typing import Any

import timm
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    is_model_pretrained,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from ..core.arguments import DRNetArgs
from ..model import DRNet
from .checkpoints import checkpoint_filter_fn, start_predictor
from .configuration import resolve_config
from .downloads import check_hub_weights, check_local_weights, download
from .mindspore.release import load_release

__all__ = ['create_drnet']

DEFAULT_MODEL = 'drnet_efficientnet_lite0.in1k'
"""The ImageNet model that ships inside the package."""

_WEIGHTS = Path(__file__).parents[1] / 'weights'

_MINDSPORE = {
    'drnet_classifier_ascend_v1100_imagenet2012_research_cv_acc77.25.ckpt':
        '4ee2acee0528f1ebbf6409b8dfee2283d65565f5cb1af82fbb8886159498a93d',
    'drnet_predictor_ascend_v1100_imagenet2012_research_cv_acc77.25.ckpt':
        'e14d7ddab57a1a76c4efae2943695c75c7a7200fc9c1851acdcf9cbc9eaefdeb',
}
"""The files of the authors' release, and their sha256."""


def create_drnet(backbone: str, pretrained: bool = False, **kwargs: Any) -> DRNet:
    """Create a DRNet from any timm CNN that is built on BatchNorm.

    The same as ``timm.create_model('drnet', backbone=backbone, ...)``.

    Args:
        backbone: Name of a timm model.
        pretrained: Whether to start from timm's weights of the backbone. Its norms go to every resolution, and the
            predictor, which has none, chooses the largest until it is trained.
        **kwargs: Arguments of `DRNet`, of the backbone, and timm's own. ``resolutions`` defaults to 1, 3/4 and 1/2 of
            the backbone's input size.

    Returns:
        The model.

    Raises:
        ValueError: If the backbone has no BatchNorm.

    Examples:
        >>> import timm_drnet, torch
        >>> model = timm_drnet.create_drnet('resnet10t', resolutions=(64, 48), router='cascade', num_classes=5).eval()
        >>> logits, choice = model.classify(torch.zeros(2, 3, 64, 64))
        >>> logits.shape, choice.shape
        (torch.Size([2, 5]), torch.Size([2]))
    """
    return timm.create_model('drnet', pretrained=pretrained, backbone=backbone, **kwargs)  # type: ignore[return-value]


def _cfg(**kwargs: Any) -> dict[str, Any]:
    """Configuration of a ResNet DRNet; section 4.1 resizes to 256 and crops the central 224 pixels, bilinearly."""
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bilinear',
        'first_conv': ('backbone.conv1', 'predictor.conv1'),
        'classifier': 'backbone.fc',
        'paper_ids': 'arXiv:2106.02898',
        'paper_name': 'Dynamic Resolution Network',
        'origin_url': 'https://arxiv.org/abs/2106.02898',
        **kwargs,
    }


def _cfg_of_backbone(backbone: str) -> dict[str, Any]:
    """Configuration of a DRNet that starts from a timm model: the model's own, with names as the DRNet has them."""
    plain = get_pretrained_cfg(backbone)
    if plain is None:
        raise ValueError(f'Unknown backbone {backbone!r}: use a name from timm.list_models().')
    cfg: dict[str, Any] = plain.to_dict()
    for key in ('architecture', 'tag', 'test_input_size', 'test_pool_size', 'test_crop_pct', 'min_input_size'):
        cfg.pop(key, None)
    for key in ('first_conv', 'classifier'):
        names = cfg[key]
        if names:
            cfg[key] = f'backbone.{names}' if isinstance(names, str) else tuple(f'backbone.{n}' for n in names)
    return cfg


def _cfg_of_tag(backbone: str) -> dict[str, Any]:
    """`_cfg_of_backbone` of a timm model that was there once; without weights if timm has retired its tag.

    Importing the package must not fail for a model that nobody asks for.
    """
    try:
        return _cfg_of_backbone(backbone)
    except (RuntimeError, ValueError):
        pass
    try:
        cfg = _cfg_of_backbone(backbone.partition('.')[0])
    except (RuntimeError, ValueError):
        return {}
    return {k: v for k, v in cfg.items() if k not in ('url', 'hf_hub_id', 'hf_hub_filename', 'license', 'origin_url')}


default_cfgs = generate_default_cfgs({
    'drnet.untrained': _cfg(),
    # The authors' own weights, top-1 77.25 % by their evaluation on ImageNet-1K.
    'drnet_resnet50.mindspore_in1k': _cfg(
        url=f'https://download.mindspore.cn/models/r1.10/{next(iter(_MINDSPORE))}', custom_load=True,
        license='apache-2.0', origin_url='https://github.com/mindspore-ai/models/tree/master/research/cv/DRNet'),
    # Plain backbones, to train from; their tags are timm's.
    'drnet_resnet50.tv_in1k': _cfg_of_tag('resnet50.tv_in1k'),
    'drnet_resnet101.tv_in1k': _cfg_of_tag('resnet101.tv_in1k'),
    'drnet_mobilenetv2.ra_in1k': _cfg_of_tag('mobilenetv2_100.ra_in1k'),
    # Google's weights, as a cascade. See the model card beside them.
    'drnet_efficientnet_lite0.in1k': _cfg(
        file=str(_WEIGHTS / 'drnet_efficientnet_lite0.in1k.safetensors'),
        interpolation='bicubic', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        first_conv='backbone.conv_stem', classifier='backbone.classifier', license='apache-2.0',
        origin_url='https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite'),
    'drnet_resnet18d_050.untrained': _cfg(
        input_size=(3, 128, 128), pool_size=(4, 4), first_conv=('backbone.conv1.0', 'predictor.conv_stem')),
})


def _create_drnet(
        variant: str,
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **kwargs: Any,
) -> nn.Module:
    cfg = resolve_config(variant, pretrained_cfg, pretrained_cfg_overlay, kwargs.get('pretrained_model_args'))
    saved = cfg.source is not None  # then the configuration knows the size of its images
    if 'resolutions' in kwargs and not saved and 'input_size' not in (pretrained_cfg_overlay or {}):
        size = DRNetArgs(resolutions=kwargs['resolutions']).resolutions[0]
        if size != cfg.input_size[-1]:
            cfg = dataclasses.replace(cfg, input_size=(cfg.input_size[0], size, size), pool_size=None)
    start = release = None
    if pretrained:
        start = _plain_model(cfg, kwargs['backbone'])
        if cfg.custom_load and not cfg.state_dict:
            release = _fetch_release(cfg, kwargs.get('cache_dir')), cfg.to_dict()
        else:
            _check_weights(cfg, kwargs.get('cache_dir'))
    return build_model_with_cfg(
        partial(_build, start=start, release=release, cache_dir=kwargs.get('cache_dir')),
        variant,
        pretrained and start is None and release is None,
        pretrained_cfg=cfg.to_dict(),
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={'feature_cls': 'getter'},
        **kwargs,
    )


def _check_weights(cfg: PretrainedCfg, cache_dir: Any) -> None:
    """Check the weights where timm will look for them, in the Hub's cache or a folder.

    Where that is, timm decides in this order: what a configuration of the Hub or of a folder says beside comes last.
    """
    if cfg.source == 'local-dir' and cfg.file:
        check_local_weights(cfg.file)
    elif cfg.hf_hub_id and (cfg.source == 'hf-hub' or not (cfg.file or cfg.state_dict)):
        check_hub_weights(cfg.hf_hub_id, cfg.hf_hub_filename, cache_dir)


def _fetch_release(cfg: PretrainedCfg, cache_dir: Any) -> Path:
    """The classifier's file of the authors' release, with the predictor's beside it, downloaded if need be."""
    if cfg.file:
        return Path(cfg.file)
    folder = posixpath.dirname(str(cfg.url))
    classifier, _ = [download(f'{folder}/{name}', sha256, cache_dir) for name, sha256 in _MINDSPORE.items()]
    return classifier


def _plain_model(cfg: PretrainedCfg, backbone: str) -> str | None:
    """Name of the timm model whose own weights a configuration stands for, None if it stands for others.

    timm loads them into the plain backbone, since it knows what each of its models needs for that.

    Raises:
        RuntimeError: If there are no weights.
    """
    name = f'{backbone}.{cfg.tag}' if cfg.tag else backbone
    if cfg.source or cfg.file or cfg.state_dict:
        return None
    if not cfg.has_weights:
        raise RuntimeError(
            f'No pretrained weights exist for {name} in timm {timm.__version__}. Use pretrained=False, or give a file'
            " of weights as pretrained_cfg_overlay={'file': ...}, which is --pretrained-path FILE of train.py.")
    if not is_model_pretrained(name):
        return None
    plain = get_pretrained_cfg(name)
    assert plain is not None  # as it is pretrained
    return name if (plain.hf_hub_id, plain.url) == (cfg.hf_hub_id, cfg.url) else None


def _build(
        backbone: str,
        start: str | None,
        release: tuple[Path, dict[str, Any]] | None,
        cache_dir: Any,
        **kwargs: Any,
) -> DRNet:
    """Share out the arguments between DRNet and its backbone, which refuses those that it does not know.

    The weights are those of the plain timm model ``start``, or those of the authors' release, if there is one of them.
    """
    own = {field.name: kwargs.pop(field.name) for field in dataclasses.fields(DRNetArgs) if field.name in kwargs}
    plain = timm.create_model(start or backbone, pretrained=start is not None, cache_dir=cache_dir, **kwargs)
    model = DRNet(plain, **own)
    if start:
        start_predictor(model)
    if release:
        load_release(model, *release)
    return model


@register_model
def drnet(
        pretrained: bool = False,
        backbone: str = 'resnet50',
        pretrained_cfg: Any = None,
        **kwargs: Any,
) -> nn.Module:
    """A DRNet around any timm CNN that is built on BatchNorm, named by ``backbone``."""
    cfg = resolve_config('drnet', pretrained_cfg, model_args=kwargs.get('pretrained_model_args')).to_dict()
    registered = resolve_pretrained_cfg('drnet').to_dict()
    if cfg.get('tag') == registered['tag']:  # stands for no backbone in particular; timm's scripts may have added to it
        added = {key: value for key, value in cfg.items() if value != registered.get(key)}
        cfg = {**_cfg_of_backbone(backbone), **added}
    size = cfg['input_size'][-1]
    kwargs.setdefault('resolutions', (size, size * 3 // 4, size // 2))
    return _create_drnet('drnet', pretrained, backbone=backbone, pretrained_cfg=cfg, **kwargs)


@register_model
def drnet_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 at 224, 168 or 112 pixels (Tables 1 to 5)."""
    return _create_drnet('drnet_resnet50', pretrained, **{'backbone': 'resnet50', **kwargs})


@register_model
def drnet_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 at 224, 168 or 112 pixels (Table 3)."""
    return _create_drnet('drnet_resnet101', pretrained, **{'backbone': 'resnet101', **kwargs})


@register_model
def drnet_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 at 224, 196 or 168 pixels with an inverted-residual predictor (Table 6)."""
    args = {'backbone': 'mobilenetv2_100', 'resolutions': (224, 196, 168), 'predictor': 'inverted_residual'}
    return _create_drnet('drnet_mobilenetv2', pretrained, **{**args, **kwargs})


@register_model
def drnet_efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-Lite0 as a cascade: 160 pixels, and 224 for images whose answer is not confident enough."""
    args = {'backbone': 'tf_efficientnet_lite0', 'resolutions': (224, 160), 'router': 'cascade', **kwargs}
    if args['resolutions'] in ((224, 160), [224, 160]) and args['router'] == 'cascade':
        args.setdefault('thresholds', (0.68769,))  # `timm-drnet adapt --epochs 0`, at 75 % of the FLOPs
    return _create_drnet('drnet_efficientnet_lite0', pretrained, **args)


@register_model
def drnet_resnet18d_050(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18-D of half width at 128, 112 or 96 pixels, small enough to train on a laptop's processor."""
    args = {
        'backbone': 'resnet18d', 'channels': (32, 64, 128, 256), 'stem_width': 16,
        'resolutions': (128, 112, 96), 'predictor': 'inverted_residual',
    }
    return _create_drnet('drnet_resnet18d_050', pretrained, **{**args, **kwargs})
