"""Weights from the network by name, loaded with the real client from a server on loopback in a fresh process."""

import json
import subprocess
import sys

import pytest
import timm
from hub_server import Fault, HubServer
from safetensors.torch import save

# Creates models in one process, since importing takes its time, and prints what was found.
DRIVER = """
import json, logging, sys
import timm, torch, timm_drnet
import torch.nn.functional as F

records = []
handler = logging.Handler()
handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
logging.getLogger('timm_drnet').addHandler(handler)

def small(x, size):
    return F.interpolate(x, (size, size), mode='bilinear', align_corners=False)

@torch.no_grad()
def compare(name, plain, create=timm.create_model, channels=3, **kwargs):
    records.clear()
    try:
        torch.manual_seed(0)
        model = create(name, pretrained=True, **kwargs).eval()
        drnet_args = ('stage', 'resolutions')
        plain = timm.create_model(plain, pretrained=True, **{k: v for k, v in kwargs.items() if k not in drnet_args})
    except Exception as error:
        return {'error': f'{type(error).__name__}: {error}'}
    x = torch.randn(3, channels, *model.pretrained_cfg['input_size'][1:])
    plain.eval()
    same_head = torch.equal(model.get_classifier().weight, plain.get_classifier().weight)
    model.reset_classifier(0) if not same_head else None
    plain.reset_classifier(0) if not same_head else None
    return {
        'choice': model.predict_resolution(x).tolist(),
        'equal': torch.equal(model(x), plain(small(x, model.resolutions[0]))),
        'branches': [torch.equal(model.forward_at(x, j), plain(small(x, r))) for j, r in enumerate(model.resolutions)],
        'same_head': same_head, 'num_classes': kwargs.get('num_classes', 1000), 'log': list(records),
        'scores': model.predictor(small(x, model.args.predictor_size)).softmax(1)[0].tolist(),
        'trainable': all(p.requires_grad for p in model.predictor.parameters()),
    }

actions = json.load(sys.stdin)
print(json.dumps([
    compare(create=getattr(timm_drnet, action.pop('create'), timm.create_model), **action) for action in actions]))
"""


@pytest.fixture(scope='module')
def hub():
    """Server with the repositories that timm has for some plain models, with random weights."""
    with HubServer() as hub:
        for name in ('resnet50.tv_in1k', 'mobilenetv2_100.ra_in1k', 'test_efficientnet.r160_in1k'):
            model = timm.create_model(name)
            for key, value in model.state_dict().items():
                if 'running' in key:
                    value.uniform_(0.5, 1.5)  # no two norms alike
            hub.add(f'timm/{name}', {'model.safetensors': save(model.state_dict())})
        yield hub


def run(hub, home, *actions, **env):
    """Run the driver with actions; its answers."""
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', DRIVER], input=json.dumps([{'create': '', **a} for a in actions]),
        env=hub.env(home, **env), capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_plain_backbones_start_a_drnet(hub, tmp_path):
    actions = [
        {'name': 'drnet_resnet50.tv_in1k', 'plain': 'resnet50.tv_in1k'},
        {'name': 'drnet_mobilenetv2', 'plain': 'mobilenetv2_100.ra_in1k', 'num_classes': 7},
        {'name': 'drnet_mobilenetv2', 'plain': 'mobilenetv2_100.ra_in1k', 'in_chans': 1, 'channels': 1},
        {'create': 'create_drnet', 'name': 'test_efficientnet', 'plain': 'test_efficientnet'},
        {'create': 'create_drnet', 'name': 'test_efficientnet.r160_in1k', 'plain': 'test_efficientnet',
         'resolutions': [128, 64], 'stage': 'pretrain'},
    ]
    answers = run(hub, tmp_path, *actions)
    for action, answer in zip(actions, answers, strict=True):
        assert 'error' not in answer, answer['error']
        assert answer['choice'] == [0, 0, 0]
        assert answer['equal']
        assert all(answer['branches'])
        assert answer['same_head'] == ('num_classes' not in action)
        pretrain = action.get('stage') == 'pretrain'
        assert answer['trainable'] != pretrain
        if pretrain:
            assert answer['log'] == []
        else:  # not so sure of itself that it could not learn
            assert answer['scores'][1:] == pytest.approx([1 / (2 + 2.718282)] * 2, abs=1e-3)
            [(level, text)] = answer['log']
            assert level == 'WARNING'
            assert 'the resolution predictor is untrained: it chooses' in text
            assert 'Train both stages' in text

    hub.requests.clear()
    again = run(hub, tmp_path, *actions[2:], HF_HUB_OFFLINE='1')  # from the cache alone
    assert again == answers[2:]
    assert hub.requests == []


def test_faults_of_a_backbone_s_download(hub, tmp_path):
    right = hub.files('timm/test_efficientnet.r160_in1k')['model.safetensors'].content
    action = {'create': 'create_drnet', 'name': 'test_efficientnet', 'plain': 'test_efficientnet'}
    flipped = right[:-1] + bytes([right[-1] ^ 1])
    hub.faults['timm/test_efficientnet.r160_in1k/model.safetensors'] = Fault(body=flipped, times=1)
    missing = {'create': 'create_drnet', 'name': 'test_resnet', 'plain': 'test_resnet'}
    damaged, absent, repaired = run(hub, tmp_path, action, missing, action)
    assert 'RuntimeError' in damaged['error']
    assert 'sha256' in damaged['error']
    assert 'Nothing was kept: try again' in damaged['error']
    assert 'timm/test_resnet' in absent['error']
    assert repaired['equal']
    kept = [p.read_bytes() for p in tmp_path.rglob('*') if p.is_file() and not p.is_symlink()]
    assert right in kept
    assert flipped not in kept
