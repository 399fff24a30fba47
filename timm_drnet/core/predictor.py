"""Resolution predictors: the tiny CNNs that see an image small and score the candidate resolutions (Eq. 1)."""

from typing import Any

from timm.models import BasicBlock, EfficientNet, ResNet
from torch import nn

from .arguments import PREDICTOR_SIZES


def create_predictor(kind: str, num_resolutions: int, in_chans: int = 3, **kwargs: Any) -> nn.Module:
    """Create a resolution predictor.

    Args:
        kind: ``residual``, the paper's four stages of one basic block (4.9 M parameters), or ``inverted_residual``,
            the same with MobileNetV2's blocks (0.28 M parameters), for backbones that are small themselves.
        num_resolutions: Number of candidates, one score each.
        in_chans: Channels of the image.
        **kwargs: ``device`` and ``dtype``.

    Returns:
        A module from (B, in_chans, S, S) to (B, num_resolutions) scores.
    """
    if kind == 'residual':
        return ResNet(
            BasicBlock,  # type: ignore[arg-type]  # timm means the type
            layers=(1, 1, 1, 1), num_classes=num_resolutions, in_chans=in_chans, **kwargs)
    if kind == 'inverted_residual':
        predictor = EfficientNet(
            block_args=[[_inverted_residual(channels)] for channels in (24, 40, 80, 160)],
            stem_size=16, num_features=640, act_layer=nn.ReLU6,
            num_classes=num_resolutions, in_chans=in_chans, **kwargs)
        # EfficientNet's own range depends on the number of outputs, three here: it would settle every choice before
        # training begins. This is MobileNetV2's.
        nn.init.normal_(predictor.classifier.weight, std=0.01)
        return predictor
    raise ValueError(f'Invalid predictor {kind!r}: use one of {", ".join(map(repr, PREDICTOR_SIZES))}.')


def _inverted_residual(channels: int) -> dict[str, Any]:
    """One downsampling MobileNetV2 block (expansion 6) in the terms of timm's EfficientNet builder."""
    return {
        'block_type': 'ir', 'out_chs': channels, 'stride': 2, 'dw_kernel_size': 3, 'exp_ratio': 6.0, 'act_layer': None,
    }
