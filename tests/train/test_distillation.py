"""Distillation between resolutions, against its definition written out, inside timm's task."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from timm.task import ClassificationTask, MultiLabelClassificationTask

import timm_drnet
from timm_drnet.train.distillation import topdown_distillation


def make_model(**kwargs):
    torch.manual_seed(0)
    return timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), num_classes=5, predictor='inverted_residual', predictor_size=32,
        **kwargs).train()


@pytest.mark.parametrize('kwargs', [
    {'stage': 'pretrain'}, {'joint_resolutions': 'all'}, {'router': 'cascade'}])
@pytest.mark.parametrize('mixed', [False, True])
def test_gradients_are_those_of_the_definition(kwargs, mixed):
    model = make_model(distill=0.6, distill_topdown=0.3, **kwargs)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 3, 64, 64, generator=generator), torch.randint(5, (6,), generator=generator)
    criterion = SoftTargetCrossEntropy() if mixed else torch.nn.CrossEntropyLoss()
    target = 0.8 * F.one_hot(y, 5).float() + 0.04 if mixed else y
    twin = copy.deepcopy(model)
    logits = [twin.forward_at(x, j) for j in range(3)]
    ensemble = (logits[0] + logits[1] + logits[2]) / 3

    def divergence(teacher, student):
        q = teacher.detach().softmax(dim=1)
        return (q * (q.log() - student.softmax(dim=1).log())).sum() / 6

    wanted = (
        sum(criterion(each, target) for each in logits)
        + 0.6 * (criterion(ensemble, target) + sum(divergence(ensemble, each) for each in logits))
        + 0.3 * sum(divergence(logits[i], logits[j]) for i, j in ((0, 1), (0, 2), (1, 2))))
    wanted.backward()

    loss = ClassificationTask(model, criterion, verbose=False)(x, target)['loss']
    loss.backward()

    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    for (name, one), other in zip(model.backbone.named_parameters(), twin.backbone.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f'{n}: {m}')


@pytest.mark.parametrize('name', ['distill', 'distill_topdown'])
def test_it_is_refused_where_it_cannot_be(name):
    with pytest.raises(ValueError, match=f'Invalid {name} -1'):
        make_model(**{name: -1})
    with pytest.raises(ValueError, match=f'Invalid {name}=1 for images with several labels'):
        MultiLabelClassificationTask(make_model(stage='pretrain', **{name: 1.0}), verbose=False)
    with pytest.raises(ValueError, match=f'Invalid {name}=1 where an image trains at one'):
        ClassificationTask(make_model(**{name: 1.0}), torch.nn.CrossEntropyLoss(), verbose=False)


def test_one_resolution_has_none_above_it():
    assert topdown_distillation([torch.randn(2, 5)]) == 0
