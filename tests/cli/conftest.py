"""What tests of several commands need."""

import pytest
import torch


@pytest.fixture(scope='session')
def spread_answers():
    """Function that gives an untrained model different resolutions and classes for different images."""

    def spread_answers(model, x):
        with torch.no_grad():
            for module in model.backbone.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.weight, 1.0, 0.3)
                    torch.nn.init.normal_(module.bias, 0.0, 0.3)
            torch.nn.init.normal_(model.predictor.classifier.weight)
            small = torch.nn.functional.interpolate(x, size=model.args.predictor_size, mode='bilinear')
            model.predictor.classifier.bias -= model.predictor(small).mean(dim=0)
            logits = torch.cat([model.forward_at(x, j) for j in range(len(model.resolutions))])
            model.get_classifier().bias -= logits.mean(dim=0)
            assert len(set(model.predict_resolution(x).tolist())) > 1
            assert len(set(logits.argmax(dim=1).tolist())) > 1
        return model

    return spread_answers
