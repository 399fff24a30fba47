import re
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load, save

from timm_drnet.hub.mindspore.names import convert_checkpoints
from timm_drnet.hub.mindspore.reader import read_checkpoint

pytest_plugins = ['mindspore_files']

REFERENCE = Path(__file__).parents[1] / 'fixtures' / 'mindspore' / 'reference.npz'
BRANCHES = {0: ('image', 'logits_224'), 1: ('input_168', 'logits_168'), 2: ('input_112', 'logits_112')}


@pytest.fixture(scope='module')
def pair(checkpoints):
    """The tensors of the genuine classifier and predictor, not to be changed."""
    return tuple(read_checkpoint(path) for path in checkpoints)


@pytest.fixture
def classifier(pair):
    """The classifier's tensors in a dictionary that may be changed."""
    return dict(pair[0])


@pytest.fixture
def predictor(pair):
    """The predictor's tensors in a dictionary that may be changed."""
    return dict(pair[1])


@pytest.fixture(scope='module')
def model(pair):
    """The converted model."""
    model = timm.create_model('drnet_resnet50').eval()
    model.load_state_dict(convert_checkpoints(*pair))
    return model


@pytest.fixture(scope='module')
def reference():
    """Inputs of the authors' networks, and the outputs that MindSpore computed with the genuine checkpoints."""
    with np.load(REFERENCE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def relative_error(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def test_predictor_computes_what_the_authors_does(model, reference):
    logits = model.predictor(reference['predictor_input'])
    assert relative_error(logits, reference['predictor_logits']) < 1e-5


@pytest.mark.parametrize('j', BRANCHES)
@torch.no_grad()
def test_branches_compute_what_the_authors_classifier_does(j, model, reference):
    image, logits = BRANCHES[j]
    assert relative_error(model.branch(j)(reference[image]), reference[logits]) < 1e-5
    for k in BRANCHES.keys() - {j}:  # no other norms would do
        assert relative_error(model.branch(k)(reference[image]), reference[logits]) > 0.01


@torch.no_grad()
def test_shortcuts_use_their_first_norm_at_every_resolution(pair, reference):
    leaves = {'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean', 'moving_variance': 'running_var'}
    state_dict = convert_checkpoints(*pair)
    shortcuts = [name for name in pair[0] if '.down_sample_layer.1.bn_' in name]
    assert len(shortcuts) == 4 * 3 * 4  # stages, norms, tensors
    for name in shortcuts:
        block, j, leaf = re.fullmatch(r'(.+)\.down_sample_layer\.1\.bn_(\d)\.(\w+)', name).groups()
        first = pair[0][f'{block}.down_sample_layer.1.bn_0.{leaf}']
        key = f'backbone.{block}.downsample.1.norms.{j}.{leaves[leaf]}'
        assert torch.equal(state_dict[key], first)
        state_dict[key] = pair[0][name]
    # With a norm of their own for every resolution, as all others have, the outputs would be others.
    model = timm.create_model('drnet_resnet50').eval()
    model.load_state_dict(state_dict)
    errors = {j: relative_error(model.branch(j)(reference[x]), reference[y]) for j, (x, y) in BRANCHES.items()}
    assert errors[0] < 1e-5
    assert min(errors[1], errors[2]) > 0.1


def test_every_other_tensor_is_the_one_of_that_name(pair, model):
    theirs = {'bn_0': 'norms.0', 'bn_1': 'norms.1', 'bn_2': 'norms.2', 'gamma': 'weight', 'beta': 'bias',
              'moving_mean': 'running_mean', 'moving_variance': 'running_var', 'down_sample_layer': 'downsample',
              'end_point': 'fc'}
    state_dict = model.state_dict()
    keys = set()
    for prefix, tensors in zip(('backbone', 'predictor'), pair, strict=True):
        for name, tensor in tensors.items():
            key = '.'.join([prefix, *(theirs.get(part, part) for part in name.split('.'))])
            keys.add(key)
            assert state_dict[key].shape == tensor.shape
            if '.down_sample_layer.1.bn_' not in name:
                assert torch.equal(state_dict[key], tensor)
    assert {key for key in state_dict if not key.endswith('num_batches_tracked')} == keys


def test_keys_and_types_are_the_model_s(pair, model):
    converted = convert_checkpoints(*pair)
    expected = model.state_dict()
    assert list(converted) == list(expected)
    assert all(converted[key].dtype == expected[key].dtype for key in expected)
    assert all(value == 0 for key, value in converted.items() if key.endswith('num_batches_tracked'))


def test_no_needless_copies_and_no_shared_memory(pair):
    start = time.process_time()
    converted = convert_checkpoints(*pair)
    assert time.process_time() - start < 3
    assert len({value.untyped_storage().data_ptr() for value in converted.values()}) == len(converted)
    handed_on = {value.data_ptr() for tensors in pair for value in tensors.values()}
    copied = [key for key, value in converted.items() if value.data_ptr() not in handed_on]
    assert all(re.search(r'downsample\.1\.norms\.[12]\.|num_batches_tracked$', key) for key in copied)


def test_tensors_that_share_memory_are_separated(classifier, predictor):
    mean = classifier['bn1.bn_0.moving_mean']
    memory = torch.stack([mean, mean + 1])
    classifier['bn1.bn_1.moving_mean'] = classifier['bn1.bn_0.moving_mean'] = mean
    classifier['bn1.bn_0.gamma'], classifier['bn1.bn_1.gamma'] = memory
    weight = classifier['layer1.0.conv2.weight']
    classifier['layer1.0.conv2.weight'] = weight.contiguous(memory_format=torch.channels_last)
    converted = convert_checkpoints(classifier, predictor)
    saved = load(save(converted))  # which refuses what shares memory or is not contiguous
    assert torch.equal(saved['backbone.bn1.norms.1.running_mean'], mean)
    assert torch.equal(saved['backbone.bn1.norms.1.weight'], mean + 1)
    assert torch.equal(saved['backbone.layer1.0.conv2.weight'], weight)


def test_half_and_double_precision_become_float32(classifier, predictor):
    classifier['end_point.bias'] = classifier['end_point.bias'].half()
    predictor['end_point.bias'] = predictor['end_point.bias'].double().requires_grad_()
    converted = convert_checkpoints(classifier, predictor)
    assert torch.equal(converted['backbone.fc.bias'], classifier['end_point.bias'].float())
    assert converted['predictor.fc.bias'].dtype == torch.float32
    assert not converted['predictor.fc.bias'].requires_grad


def test_another_number_of_classes(classifier, predictor):
    for name in ('end_point.weight', 'end_point.bias'):
        classifier[name] = classifier[name][:7].clone()
    model = timm.create_model('drnet_resnet50', num_classes=7)
    model.load_state_dict(convert_checkpoints(classifier, predictor))


def test_training_state_is_left_out(pair, classifier, predictor):
    number = torch.tensor(1.0)
    for name in ('epoch_num', 'step_num', 'global_step', 'learning_rate', 'momentum', 'beta1_power', 'beta2_power',
                 'loss_scale', 'scale_sense', 'current_iterator_step', 'last_overflow_iterator_step'):
        classifier[name] = predictor[name] = number
    for kind in ('moments', 'accum', 'stat', 'moment1', 'moment2'):
        classifier[f'{kind}.layer1.0.bn1.bn_1.gamma'] = predictor[f'{kind}.conv1.weight'] = number
    converted = convert_checkpoints(classifier, predictor)
    expected = convert_checkpoints(*pair)
    assert list(converted) == list(expected)
    assert all(torch.equal(converted[key], expected[key]) for key in expected)


@pytest.mark.parametrize(('argument', 'name', 'change', 'words'), [
    ('classifier', 'layer3.5.bn2.bn_1.beta', None, '1 are missing (layer3.5.bn2.bn_1.beta)'),
    ('classifier', 'layer2.0.down_sample_layer.1.bn_2.gamma', None, '1 are missing'),  # not in use, but part of it
    ('classifier', 'end_point.bias', None, '1 are missing (end_point.bias)'),
    ('predictor', 'end_point.weight', None, '1 are missing (end_point.weight)'),
    ('classifier', 'bn2.gamma', torch.zeros(64), '1 are unknown (bn2.gamma)'),
    ('predictor', 'layer5.0.conv1.weight', torch.zeros(1), '1 are unknown (layer5.0.conv1.weight)'),
    ('classifier', 'moments.layer9.weight', torch.zeros(1), '1 are unknown (moments.layer9.weight)'),
    ('classifier', 'moments', torch.zeros(1), '1 are unknown (moments)'),
    ('classifier', 'epoch_number', torch.zeros(1), '1 are unknown (epoch_number)'),
    ('classifier', 'bn1.num_batches_tracked', torch.zeros(1), '1 are unknown (bn1.num_batches_tracked)'),
    ('classifier', 'conv1.weight', torch.zeros(64, 1, 7, 7), 'conv1.weight of shape (64, 1, 7, 7)'),
    ('classifier', 'layer1.0.bn1.bn_0.gamma', torch.zeros(()), 'bn_0.gamma of shape ()'),
    ('classifier', 'end_point.weight', torch.zeros(999, 2048), '(999, 2048)'),
    ('classifier', 'end_point.bias', torch.zeros(1000, 2), '(1000, 2)'),
    ('predictor', 'end_point.bias', torch.zeros(4), '(4,) and torch.float32 instead of (3,) and float'),
    ('predictor', 'conv1.weight', torch.zeros(64, 3, 7, 7, dtype=torch.int32), 'torch.int32'),
])
def test_what_does_not_fit_is_named(argument, name, change, words, classifier, predictor):
    tensors = {'classifier': classifier, 'predictor': predictor}
    tensors[argument].pop(name, None)
    if change is not None:
        tensors[argument][name] = change
    with pytest.raises(ValueError, match=f'^Invalid {argument}: ') as caught:
        convert_checkpoints(**tensors)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


def test_swapped_and_doubled_checkpoints(classifier, predictor):
    with pytest.raises(ValueError, match=r'swapped. Give the classifier first\.'):
        convert_checkpoints(predictor, classifier)
    for pair, wrong in (((classifier, classifier), 'predictor'), ((predictor, predictor), 'classifier')):
        with pytest.raises(ValueError, match=rf'^Invalid {wrong}: .* are missing \(.*, \.\.\.\)') as caught:
            convert_checkpoints(*pair)
        assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match='Invalid classifier: of its 0 tensors, 691 are missing'):
        convert_checkpoints({}, {})
