"""A plain backbone and photographs for it."""

import random

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    """160 photographs in five class folders: coloured blots, no two alike."""
    root = tmp_path_factory.mktemp('photographs')
    draw = random.Random(0)
    for i in range(160):
        image = Image.new('RGB', (80, 72), tuple(draw.randrange(256) for _ in range(3)))
        for _ in range(6):
            box = draw.randrange(70), draw.randrange(60)
            size = draw.randrange(8, 40), draw.randrange(8, 40)
            image.paste(tuple(draw.randrange(256) for _ in range(3)), (*box, box[0] + size[0], box[1] + size[1]))
        place = root / 'abcde'[i % 5]
        place.mkdir(exist_ok=True)
        image.save(place / f'{i:03}.png')
    return root


@pytest.fixture
def plain(folder):
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
