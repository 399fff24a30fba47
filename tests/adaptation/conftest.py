"""A plain backbone and photographs for it."""

import copy

import pytest
import timm
import torch
from pictures import draw_blots
from PIL import Image
from timm.data import create_transform


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """160 photographs in five class folders: coloured blots, no two alike."""
    root = tmp_path_factory.mktemp('photographs')
    draw_blots(root, 160, 'abcde')
    return root


@pytest.fixture(scope='session')
def untouched(folder):
    """A plain model of five classes whose answers differ from photograph to photograph."""
    torch.manual_seed(0)
    model = timm.create_model('test_resnet', num_classes=5).eval()
    model.pretrained_cfg.update(input_size=(3, 64, 64), crop_pct=1.0)
    transform = create_transform((3, 64, 64), crop_pct=1.0)
    x = torch.stack([transform(Image.open(path)) for path in sorted(folder.rglob('*.png'))[:30]])
    head = model.get_classifier()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.weight, 1.0, 0.3)
                torch.nn.init.normal_(module.bias, 0.0, 0.3)
        head.weight.mul_(2 / model(x).std(dim=0)[:, None])
        head.bias.sub_(model(x).mean(dim=0))
    return model


@pytest.fixture
def plain(untouched):
    """A copy of the plain model."""
    return copy.deepcopy(untouched)
