"""The network of the experiment: a narrow ResNet-10-D that keeps resolution, plain or as a DRNet."""

import copy
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

import timm_drnet
from timm_drnet.core.norm import resize

RESOLUTIONS = (64, 48, 32)
_CHANNELS = (32, 64, 192, 384)
_STEM_WIDTH = 16


def _backbone(width: float) -> dict[str, Any]:
    return {
        'layers': (1, 1, 1, 1), 'channels': tuple(round(width * c) for c in _CHANNELS),
        'stem_width': round(width * _STEM_WIDTH)}


def plain(num_classes: int, width: float = 1.0) -> nn.Module:
    """The backbone alone, without the max-pool of the stem: at 64 px its last feature map has 4 by 4 pixels."""
    model = timm.create_model('resnet18d', num_classes=num_classes, **_backbone(width))
    model.maxpool = nn.Identity()
    return model


def drnet(num_classes: int, width: float = 1.0, **kwargs: Any) -> timm_drnet.DRNet:
    """The same as a DRNet."""
    model = timm_drnet.create_drnet(
        'resnet18d', num_classes=num_classes, resolutions=RESOLUTIONS, predictor='inverted_residual', predictor_size=48,
        **_backbone(width), **kwargs)
    model.backbone.maxpool = nn.Identity()
    return model


class Held(nn.Module):
    """A backbone alone that is given images of any size, and sees them at one."""

    def __init__(self, backbone: nn.Module, side: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Classify images, (B, 3, S, S)."""
        return self.backbone(resize(x, self.side))


class FeaturePredictor(nn.Module):
    """A predictor that begins as the trained branch of the smallest resolution does.

    Its first layers are frozen copies, up to the second of four stages; what is trained is a small head on their
    averages and deviations over the feature map.
    """

    def __init__(self, model: timm_drnet.DRNet) -> None:
        super().__init__()
        branch = copy.deepcopy(model.branch(len(model.resolutions) - 1)).eval().requires_grad_(False)
        self.early = nn.Sequential(
            branch.conv1, branch.bn1, branch.act1, branch.maxpool, branch.layer1, branch.layer2)
        channels = 2 * branch.layer2[-1].conv2.out_channels
        self.head = nn.Sequential(
            nn.BatchNorm1d(channels), nn.Linear(channels, 128), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(128, len(model.resolutions)))

    def train(self, mode: bool = True) -> 'FeaturePredictor':
        """Only the head has a mode."""
        super().train(mode)
        self.early.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score the candidates for images of the smallest size."""
        x = self.early(x).float()
        return self.head(torch.cat([x.mean(dim=(2, 3)), F.relu(x.var(dim=(2, 3))).sqrt()], dim=1))
