"""A tiny cascade that sends the example photographs to all of its resolutions, made once."""

import dataclasses
from pathlib import Path

import pytest
import torch

import timm_drnet
from timm_drnet.data.files import find_images
from timm_drnet.data.reading import image_loader
from timm_drnet.demo.network import Network

PHOTOS = find_images([Path(__file__).parents[2] / 'examples' / 'photos'])


@pytest.fixture(scope='session')
def cascade():
    torch.manual_seed(0)
    model = timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), router='cascade', num_classes=5).eval()
    x = torch.stack([image_loader(model)(path) for path in PHOTOS])
    with torch.no_grad():
        torch.nn.init.normal_(model.get_classifier().weight)
        for j in range(3):
            for module in model.branch(j).modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.weight, 1, 0.3)
        logits = torch.cat([model.forward_at(x, j) for j in range(3)])
        model.get_classifier().bias -= logits.mean(dim=0)
        sure = [model.forward_at(x, j).softmax(dim=1).amax(dim=1) for j in range(3)]
    low = float(sure[2].sort().values[7:9].mean())
    middle = float(sure[1][sure[2] < low].sort().values[3:5].mean())
    model.args = dataclasses.replace(model.args, thresholds=(middle, low))
    with torch.no_grad():
        assert sorted(model.predict_resolution(x).tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    return model


@pytest.fixture(scope='session')
def network(cascade):
    return Network(cascade, ['ant', 'bee', 'cat', 'dog', 'elk'])
