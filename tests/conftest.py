"""Tiny models and independent plain ones, shared by the tests of the core."""

import dataclasses
import os
import re
from collections import Counter

# Both are read at import. No test may depend on the real Hub, and the processes of tests share the cores.
os.environ['HF_ENDPOINT'] = 'http://127.0.0.1:9'
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
import timm
import tiny_models
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import timm_drnet

# What makes the host wait on a device, as aten operators: bincount reads the smallest and the largest entry, and
# lift_fresh, torch.tensor's own, would have to be copied there.
WAITING = {
    '_local_scalar_dense', 'nonzero', 'bincount', 'masked_select', 'equal', 'is_nonzero', '_unique2', '_to_copy',
    'lift_fresh',
}


class Waits(TorchDispatchMode):
    """Counts the operators that make the host wait."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        to_other_device = 'device' in (kwargs or {})
        if name in WAITING and (name != '_to_copy' or to_other_device):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers in every run and order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def ray_here():
    """A Ray on this machine, started once for all tests that need one."""
    from timm_drnet.bulk.cluster import ray_cluster

    # Ray's workers step back for all other processes, and so would wait for the tests that run beside these; and where
    # cores are shared, a thread that spins while it waits for another keeps the core from it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('RAY_worker_niceness', '0')
        patch.setenv('OMP_WAIT_POLICY', 'passive')
        with ray_cluster(None, None):
            yield


@pytest.fixture
def make_tiny():
    """Function that creates a DRNet of well under a million parameters at 64, 48 and 32 px, with five classes."""

    def make(backbone='test_resnet', seed=0, **kwargs):
        torch.manual_seed(seed)
        args = {
            'resolutions': (64, 48, 32), 'predictor': 'inverted_residual', 'predictor_size': 32, 'num_classes': 5,
            **kwargs,
        }
        return timm_drnet.create_drnet(backbone, **args)

    return make


@pytest.fixture
def tiny(make_tiny, shake):
    """A tiny DRNet in eval mode whose norms all differ."""
    return shake(make_tiny()).eval()


@pytest.fixture
def shake():
    """Function that gives every norm of a model random weights and statistics, and returns the model."""
    return tiny_models.shake


@pytest.fixture
def make_family(make_tiny):
    """Function that creates a DRNet of one of timm's families in eval mode, with norms that all differ."""

    def make(name, **kwargs):
        args, resolutions = tiny_models.FAMILIES[name]
        return tiny_models.shake(make_tiny(name, resolutions=resolutions, **args, **kwargs)).eval()

    return make


@pytest.fixture
def images():
    """Function that draws normal images."""

    def images(n, size=64, channels=3, seed=1):
        return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))

    return images


@pytest.fixture
def spread_choices():
    """Function that fits the predictor's classifier so that given images get the choices 0, 1, 2, 0, 1, 2, ..."""

    def spread_choices(model, x):
        wanted = torch.arange(len(x)) % len(model.resolutions)
        classifier = model.predictor.get_classifier()
        training = model.training
        model.eval()
        with torch.no_grad():
            size = (model.args.predictor_size, model.args.predictor_size)
            small = torch.nn.functional.interpolate(x, size, mode='bilinear', align_corners=False)
            features = model.predictor.forward_head(model.predictor.forward_features(small), pre_logits=True)
            mean = features.mean(dim=0)
            scores = torch.nn.functional.one_hot(wanted, len(model.resolutions)).float()
            weight = (torch.linalg.pinv(features - mean) @ (scores - scores.mean(dim=0))).T
            classifier.weight.copy_(weight)
            classifier.bias.copy_(-weight @ mean)
            assert torch.equal(model.predict_resolution(x), wanted)
        model.train(training)
        return wanted

    return spread_choices


@pytest.fixture
def make_cascade(make_tiny, shake, images):
    """Function that creates a tiny cascade in eval mode that stops a third of ``images(30)`` at each resolution."""

    def make(**kwargs):
        x, model = images(30), shake(make_tiny(router='cascade', **kwargs)).eval()
        with torch.no_grad():
            model.get_classifier().weight.mul_(8)  # of random weights, answers would all be as unsure
            logits = torch.cat([model.forward_at(x, j) for j in range(3)])
            model.get_classifier().bias -= logits.mean(dim=0)  # nor alike
            sure = [model.forward_at(x, j).softmax(dim=1).amax(dim=1) for j in range(3)]
        low = float(sure[2].sort().values[19:21].mean())
        middle = float(sure[1][sure[2] < low].sort().values[9:11].mean())
        model.args = dataclasses.replace(model.args, thresholds=(middle, low))
        return model

    return make


@pytest.fixture
def make_plain():
    """Function that builds a plain timm model with the weights of one branch, without the package's own views."""

    def make(model, index, name='test_resnet', **kwargs):
        state = {}
        for key, value in model.backbone.state_dict().items():
            norm = re.fullmatch(r'(.+)\.norms\.(\d+)\.(.+)', key)
            if norm is None:
                state[key] = value.clone()
            elif int(norm[2]) == index:
                state[f'{norm[1]}.{norm[3]}'] = value.clone()
        plain = timm.create_model(name, num_classes=model.num_classes, in_chans=model.in_chans, **kwargs)
        plain.load_state_dict(state)
        return plain.train(model.training)

    return make


@pytest.fixture
def waits(monkeypatch):
    """Counter of what makes the host wait; tolist is counted apart, since it reads the CPU's memory directly."""
    mode = Waits()
    tolist = torch.Tensor.tolist

    def counted(tensor):
        mode.seen['tolist'] += 1
        return tolist(tensor)

    monkeypatch.setattr(torch.Tensor, 'tolist', counted)
    return mode
