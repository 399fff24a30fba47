"""Evaluation for a while, after which each module is in its own mode again."""

import pytest
import torch

from timm_drnet.adaptation.norms import estimate_statistics
from timm_drnet.deploy.eval_mode import evaluating
from timm_drnet.evaluate.answers import collect_answers
from timm_drnet.train.predictor import train_predictor


def fail(model, batches):
    with evaluating(model):
        raise KeyError


@pytest.mark.parametrize(('use', 'error'), [
    (collect_answers, None), (lambda model, batches: train_predictor(model, batches, 1), None),
    (lambda model, batches: estimate_statistics(model, 1, [x for x, _ in batches]), None),
    (fail, KeyError), (lambda model, batches: collect_answers(model, []), ValueError),
    (lambda model, batches: estimate_statistics(model, 1, []), ValueError),
    (lambda model, batches: train_predictor(model, [], 1), ValueError),
])
@pytest.mark.parametrize('training', [True, False])
def test_each_module_gets_its_own_mode_back(tiny, images, use, error, training):
    tiny.train(training)
    tiny.backbone.layer1.train(not training)  # frozen, or the only part that learns
    modes = {name: module.training for name, module in tiny.named_modules()}
    seen = []
    tiny.get_classifier().register_forward_pre_hook(lambda module, args: seen.append(module.training))
    batches = [(images(4), torch.arange(4))]
    if error is None:
        use(tiny, batches)
        assert set(seen) == {False}
    else:
        with pytest.raises(error):
            use(tiny, batches)
    assert {name: module.training for name, module in tiny.named_modules()} == modes
