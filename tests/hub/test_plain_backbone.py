"""A DRNet around a plain model that somebody has."""

import pytest
import timm
import torch
from torch import nn

from timm_drnet.hub.plain_backbone import drnet_from
from timm_drnet.hub.publishing import save_folder


@pytest.mark.parametrize(('name', 'kwargs'), [
    ('test_resnet', {'num_classes': 7, 'in_chans': 1}), ('test_efficientnet', {}),
    ('test_byobnet', {'num_classes': 3})])
def test_answers_as_the_model_does(name, kwargs, images, tmp_path):
    plain = timm.create_model(name, **kwargs).eval()
    for i, norm in enumerate(m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0.1 * i, 0.1)
    plain.pretrained_cfg.update(mean=(0.5,), std=(0.25,), label_names=[f'n{i}' for i in range(plain.num_classes)])
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    model = drnet_from(plain, resolutions=(64, 48), router='cascade')
    x = images(2, 64, plain.in_chans)
    assert torch.equal(model.forward_at(x, 0), plain(x))
    assert torch.equal(model.branch(1)(x), plain(x))
    assert all(torch.equal(value, before[key]) for key, value in plain.state_dict().items())
    assert model.pretrained_cfg['mean'] == (0.5,)
    assert model.pretrained_cfg['label_names'][2] == 'n2'
    save_folder(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    assert torch.equal(again(x), model(x))
    assert again.args == model.args


def changed():
    """A model that timm would not create."""
    plain = timm.create_model('test_resnet')
    plain.conv1[0] = nn.Conv2d(3, 16, 5, bias=False)
    return plain


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: nn.Conv2d(3, 4, 3), 'no model of timm.create_model'),
    (lambda: timm.create_model('test_vit'), 'no BatchNorm'),
    (changed, 'conv1.0.weight is .* the weights are those of another model'),
])
def test_what_is_no_plain_model(make, message):
    with pytest.raises(ValueError, match=message):
        drnet_from(make(), router='cascade')
