"""What several tests of bulk runs need."""

import pytest
import torch
from torch.nn.functional import interpolate

import timm_drnet


@pytest.fixture(scope='session')
def make_spread():
    """Function that creates a model whose choices and answers differ between given images, (B, C, S, S)."""

    def make_spread(x, num_classes):
        torch.manual_seed(0)
        model = timm_drnet.create_drnet(
            'test_resnet', resolutions=(64, 48, 32), predictor='inverted_residual', predictor_size=32,
            num_classes=num_classes)
        for module in model.predictor.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # its statistics become those of these images
        with torch.no_grad():
            model.predictor(interpolate(x, (32, 32), mode='bilinear', align_corners=False))
            model.eval()
            torch.nn.init.normal_(model.predictor.classifier.weight)
            model.predictor.classifier.bias -= model.predictor_scores(x).mean(dim=0)
            torch.nn.init.normal_(model.backbone.fc.weight, std=3)
            model.backbone.fc.bias -= model(x).mean(dim=0)
        return model

    return make_spread
