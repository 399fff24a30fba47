"""Pruned and parametrized weights: counted, trained with the FLOPs loss and deployed like ordinary ones."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import timm_drnet


def layers(model, kind=(nn.Conv2d, nn.Linear)):
    return [module for module in model.modules() if isinstance(module, kind)]


def prune_twice(model):
    for layer in layers(model):
        prune.l1_unstructured(layer, 'weight', amount=0.4)
        prune.random_unstructured(layer, 'weight', amount=0.2)


def prune_channels(model):
    for layer in layers(model, nn.Conv2d):
        prune.ln_structured(layer, 'weight', amount=0.3, n=2, dim=0)


def prune_norms_and_biases(model):
    for norm in layers(model, nn.BatchNorm2d):
        prune.l1_unstructured(norm, 'weight', amount=0.3)
    for layer in layers(model, nn.Linear):
        prune.l1_unstructured(layer, 'bias', amount=0.4)


def normalize_weights(model):
    for layer in layers(model):
        parametrizations.weight_norm(layer)


def normalize_spectra(model):
    for layer in layers(model):
        parametrizations.spectral_norm(layer)


def normalize_spectra_by_hooks(model):
    for layer in layers(model):
        nn.utils.spectral_norm(layer)


def is_changed(model):
    return prune.is_pruned(model) or any(map(parametrize.is_parametrized, model.modules()))


def train(model, x):
    model.train()
    torch.manual_seed(1)
    timm_drnet.training_loss(model, nn.CrossEntropyLoss(), model(x), torch.arange(len(x)) % 5).backward()
    torch.optim.SGD(model.parameters(), 0.05).step()
    model.zero_grad()


@pytest.mark.parametrize('change', [
    prune_twice, prune_channels, prune_norms_and_biases, normalize_weights, normalize_spectra,
    pytest.param(normalize_spectra_by_hooks, marks=pytest.mark.filterwarnings('ignore::FutureWarning')),
])
def test_pruned_and_parametrized_weights(make_tiny, shake, spread_choices, images, change):
    model, x = shake(make_tiny(alpha=0.005)), images(6)
    flops = timm_drnet.cost_table(model)
    memory = model.deploy(micro_batch=0, share_weights=True).memory()
    spread_choices(model, x)
    change(model)
    train(model, x)  # what a layer holds as its weight is now that of the step before
    model.prices = (0.2, 0.1, 0.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]

    model.__dict__.pop('_cost_table', None)
    assert timm_drnet.cost_table(model) == flops
    deployed = [model.deploy(micro_batch=0, share_weights=share) for share in (False, True)]
    assert deployed[1].memory() < 1.1 * memory  # whose branches still have their convolutions in common
    assert [module.training for module in model.modules()] == modes
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    model.eval()
    with torch.no_grad():
        for one in deployed:
            for j in range(3):
                torch.testing.assert_close(one.forward_at(x, j), model.forward_at(x, j), rtol=1e-4, atol=1e-5)
            assert torch.equal(one.predict_resolution(x), model.predict_resolution(x))
    assert is_changed(model) == (change is not normalize_spectra_by_hooks)
    train(model, x)
    moved = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert any('weight_orig' in key or 'original' in key for key in moved)
    for layer in layers(model):
        if hasattr(layer, 'weight_mask'):
            assert (layer.weight[layer.weight_mask == 0] == 0).all()
            prune.remove(layer, 'weight')
