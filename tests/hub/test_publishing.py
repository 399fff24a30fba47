"""The folder that goes to the Hub, and what becomes of the Hub's refusals.

What a push does to a repository is tested in fresh processes, in `cli/test_publish.py`.
"""

import contextlib
import json
import re
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import pytest
import timm
import torch
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from huggingface_hub import ModelCard
from PIL import Image

import timm_drnet
from timm_drnet.hub import publishing as hub
from timm_drnet.hub.model_card import model_card
from timm_drnet.hub.publishing import PublishError, disown_source, infer_base_model, publish, save_folder
from timm_drnet.train.training_run import TrainingRun

CARD = ModelCard('---\nlicense: mit\n---\n\n# A card\n')

# Every argument of DRNet, with a value that is not its default.
DRNET_ARGS = {
    'resolutions': (96, 64), 'predictor': 'inverted_residual', 'predictor_size': 48, 'alpha': 0.0125, 'eta': 0.75,
    'tau': 2.5, 'resolution_aware_norm': False, 'stage': 'pretrain'}


def load(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def same(model, other, x):
    """Whether two models have the same state and the same logits, bit by bit."""
    state, state_other = model.state_dict(), other.state_dict()
    with torch.no_grad():
        return (
            list(state) == list(state_other) and all(torch.equal(state[key], state_other[key]) for key in state)
            and torch.equal(model(x), other(x)))


def read_config(folder):
    return json.loads((folder / 'config.json').read_text())


def test_folder_is_loaded_bit_by_bit(tiny, images, spread_choices, tmp_path):
    x = images(6)
    spread_choices(tiny, x)
    save_folder(tiny, tmp_path / 'new', CARD)
    assert sorted(file.name for file in (tmp_path / 'new').iterdir()) == [
        'README.md', 'config.json', 'model.safetensors']
    loaded = load(tmp_path / 'new')
    assert same(loaded, tiny, x)
    assert loaded.resolutions == tiny.resolutions
    assert str(ModelCard.load(tmp_path / 'new/README.md')) == str(CARD)


def test_channels_last_is_saved_and_stays(tiny, images, tmp_path):
    tiny.to(memory_format=torch.channels_last)
    save_folder(tiny, tmp_path, CARD)
    assert same(load(tmp_path).to(memory_format=torch.channels_last), tiny, images(2))
    assert tiny.backbone.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not tiny.backbone.conv1[0].weight.is_contiguous()


@pytest.mark.parametrize(('key', 'value'), [
    ('backbone.fc.weight', float('nan')), ('backbone.bn1.norms.2.running_var', float('inf'))])
def test_weights_that_are_no_numbers_are_not_saved(tiny, tmp_path, key, value):
    tiny.state_dict()[key][0] = value
    with pytest.raises(ValueError, match=f'the weights are damaged: {key} has values'):
        save_folder(tiny, tmp_path / 'new', CARD)
    assert not (tmp_path / 'new').exists()


def test_every_argument_survives(make_tiny, shake, tmp_path):
    model = shake(make_tiny(**DRNET_ARGS, in_chans=1, num_classes=3)).eval()
    save_folder(model, tmp_path, CARD)
    loaded = load(tmp_path)
    for name in DRNET_ARGS.keys() - {'predictor'}:
        assert getattr(loaded.args, name) == getattr(model.args, name) == DRNET_ARGS[name]
    assert (loaded.num_classes, loaded.in_chans) == (3, 1)
    assert type(loaded.backbone) is type(model.backbone)
    args = read_config(tmp_path)['model_args']
    assert {**args, 'resolutions': tuple(args['resolutions'])}.items() >= DRNET_ARGS.items()
    assert args['backbone'] == 'test_resnet'


def test_what_was_changed_after_creation_survives(tiny, tmp_path):
    tiny.args = replace(tiny.args, eta=0.5, tau=3.0, alpha=None)
    save_folder(tiny, tmp_path / 'a', CARD)
    loaded = load(tmp_path / 'a')
    assert (loaded.args.eta, loaded.args.tau, loaded.args.alpha) == (0.5, 3.0, None)
    loaded.args = replace(loaded.args, alpha=0.01)
    save_folder(loaded, tmp_path / 'b', CARD)
    again = load(tmp_path / 'b')
    assert again.args.alpha == 0.01
    again.args = replace(again.args, alpha=None)
    save_folder(again, tmp_path / 'c', CARD)
    assert load(tmp_path / 'c').args.alpha is None


def test_preprocessing_labels_and_licence(tiny, tmp_path):
    config = {'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6], 'crop_pct': 0.77, 'interpolation': 'bicubic',
              'input_size': [3, 96, 96]}
    labels = ['ape', 'bear', 'cat', 'dog', 'eel']
    save_folder(tiny, tmp_path, CARD, labels, config, license='mit')
    loaded = load(tmp_path)
    data = timm.data.resolve_model_data_config(loaded)
    assert {key: list(data[key]) if isinstance(data[key], tuple) else data[key] for key in config} == config
    assert list(loaded.pretrained_cfg['label_names']) == labels
    assert loaded.pretrained_cfg['license'] == 'mit'
    assert read_config(tmp_path)['label_names'] == labels  # where transformers looks
    assert tiny.pretrained_cfg['license'] == 'apache-2.0'


def test_own_labels_stay_unless_others_are_given(make_tiny, tmp_path):
    model = make_tiny(num_classes=2)
    model.pretrained_cfg |= {'num_classes': 2, 'label_names': ('n01', 'n02'), 'label_descriptions': {'n01': 'ape'}}
    save_folder(model, tmp_path / 'own', CARD)
    cfg = load(tmp_path / 'own').pretrained_cfg
    assert (list(cfg['label_names']), cfg['label_descriptions']) == (['n01', 'n02'], {'n01': 'ape'})
    save_folder(model, tmp_path / 'other', CARD, ['x', 'y'])
    cfg = load(tmp_path / 'other').pretrained_cfg
    assert list(cfg['label_names']) == ['x', 'y']
    assert 'label_descriptions' not in cfg
    assert 'n01' not in (tmp_path / 'other/config.json').read_text()
    with pytest.raises(ValueError, match='3 labels for a model of 2 classes'):
        save_folder(model, tmp_path / 'wrong', CARD, ['x', 'y', 'z'])
    assert not (tmp_path / 'wrong').exists()


def test_transformers_loads_the_folder(tiny, images, tmp_path):
    transformers = pytest.importorskip('transformers')
    save_folder(tiny, tmp_path, CARD, ['ape', 'bear', 'cat', 'dog', 'eel'])
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    x = images(4)
    with torch.no_grad():  # not equal to the last bit, as it keeps weights where they lie in the file
        torch.testing.assert_close(loaded(x).logits, tiny(x))
    state = loaded.timm_model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in tiny.state_dict().items())
    assert loaded.config.id2label[4] == 'eel'


def test_python_of_the_card_runs(tiny, tmp_path, monkeypatch):
    """The first example of the card, on a photograph and the model in a folder."""
    code = re.search('```python\n(.*?)```', model_card(tiny, 'org/name', 'mit').text, re.DOTALL)[1]
    save_folder(tiny, tmp_path / 'model', CARD)
    Image.new('L', (70, 80), 99).save(tmp_path / 'photo.jpg')
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(code.replace('hf-hub:org/name', 'local-dir:model'), scope)
    assert scope['probabilities'].shape == (1, 5)
    assert scope['choice'].tolist() == tiny.predict_resolution(scope['images']).tolist()


def test_model_that_its_arguments_do_not_describe_is_refused(make_tiny, tmp_path):
    model = make_tiny()
    model.backbone.conv1[0] = torch.nn.Conv2d(3, 16, 5, stride=2, padding=2, bias=False)
    with pytest.raises(ValueError, match=r'conv1.0.weight is \(16, 3, 5, 5\), timm would make it \(16, 3, 3, 3\)'):
        save_folder(model, tmp_path, CARD)
    model = make_tiny()
    model.reset_classifier(9)  # which timm knows about
    save_folder(model, tmp_path, CARD)
    assert load(tmp_path).num_classes == 9


@pytest.mark.parametrize(('cfg', 'run', 'expected'), [
    ({}, None, None),
    ({'hf_hub_id': 'timm/resnet50.tv_in1k'}, None, 'timm/resnet50.tv_in1k'),
    ({'hf_hub_id': 'org/name@v1', 'source': 'hf-hub'}, None, None),  # it would be a copy
    ({'hf_hub_id': 'org/name@v1', 'source': 'hf-hub'}, {'pretrained': True}, 'org/name'),
    ({'hf_hub_id': 'timm/resnet50.tv_in1k'}, {'pretrained': True}, 'timm/resnet50.tv_in1k'),
    ({'hf_hub_id': 'timm/resnet50.tv_in1k'}, {'pretrained': False}, None),
    ({'hf_hub_id': 'timm/resnet50.tv_in1k'}, {'pretrained': True, 'initial_checkpoint': 'last.pth'}, None),
    ({}, {'pretrained': True}, None),
])
def test_base_model_is_named_where_it_is_certain(tiny, cfg, run, expected):
    tiny.pretrained_cfg = cfg
    assert infer_base_model(tiny, None if run is None else TrainingRun(run)) == expected


def test_other_weights_lose_the_origin_of_the_registered_ones():
    model, other = (timm.create_model(timm_drnet.DEFAULT_MODEL) for _ in range(2))
    disown_source(model)
    assert {'tag', 'origin_url'}.isdisjoint(model.pretrained_cfg)
    assert model.pretrained_cfg['license'] == 'apache-2.0'
    assert other.pretrained_cfg['tag'] == 'in1k'


@contextlib.contextmanager
def answering(status):
    """Address of a server that answers everything with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers['Content-Length'] or 0))
            self.send_response(status)
            self.send_header('Content-Length', '0')
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    """Files that need no model."""
    for name in ('README.md', 'config.json', 'model.safetensors'):
        (tmp_path / name).write_text('{}')
    return tmp_path


@pytest.fixture
def use(monkeypatch):
    """Function that makes `publish` talk to a server."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_XET', True)
    return lambda url: monkeypatch.setattr(hub, 'HfApi', partial(huggingface_hub.HfApi, endpoint=url))


def test_server_that_is_not_there_or_in_trouble(use, folder):
    with answering(503) as url:
        use(url)
        with pytest.raises(PublishError, match=f'^{url} answered 503: .*; nothing was changed, try again$'):
            publish(folder, 'org/name', token=WRITE_TOKEN)
    use(url)
    with pytest.raises(PublishError, match=f'^cannot reach {url}: .*refused') as error:
        publish(folder, 'org/name', token=WRITE_TOKEN)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('kwargs', 'words'), [
    ({'token': 'hf_wrong'}, 'does not accept the token: run "hf auth login"'),
    ({'repo_id': 'org/other', 'token': READ_TOKEN}, r'no permission to write to org/other \(You must use a token with'),
    ({'revision': 'dev'}, "^org/name has no branch 'dev': create it first"),
    ({'repo_id': 'org/other', 'revision': 'dev'}, "^org/other does not exist, so it has no branch 'dev'"),
    ({'private': True}, '^org/name exists and is public'),
])
def test_refusals_leave_everything_as_it_was(use, folder, kwargs, words):
    with HubServer() as server:
        before = server.add('org/name', {'config.json': b'old'})
        use(server.url)
        with pytest.raises(PublishError, match=words) as error:
            publish(folder, **{'repo_id': 'org/name', 'token': WRITE_TOKEN, **kwargs})
        assert list(server.repositories) == ['org/name']
        assert server.repositories['org/name'].resolve('main').oid == before
    assert '\n' not in str(error.value)


def test_metadata_that_the_hub_refuses(use, folder, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise ValueError('Invalid metadata in README.md.\n- "license" must be one of [...]')

    monkeypatch.setattr(huggingface_hub.HfApi, 'create_commit', refuse)
    with HubServer() as server:
        use(server.url)
        with pytest.raises(PublishError, match=r'does not take this: Invalid metadata in README.md. "license" must be'):
            publish(folder, 'org/name', token=WRITE_TOKEN)


def test_no_token(folder, monkeypatch):
    monkeypatch.setattr(hub, 'get_token', lambda: None)
    with pytest.raises(PublishError, match='no token for the Hub: run "hf auth login", or set HF_TOKEN'):
        publish(folder, 'org/name')

    def fail():
        raise RuntimeError('the provider is\nout of order')

    monkeypatch.setattr(hub, 'get_token', fail)
    with pytest.raises(PublishError, match='^no token for the Hub: the provider is out of order$'):
        publish(folder, 'org/name')


def test_default_model_can_be_published_and_loaded(tmp_path):
    model = timm.create_model(timm_drnet.DEFAULT_MODEL, pretrained=True).eval()
    save_folder(model, tmp_path, CARD)
    loaded = load(tmp_path)
    assert same(loaded, model, torch.randn(2, 3, 224, 224))
    assert loaded.args == model.args
    assert loaded.pretrained_cfg['license'] == 'apache-2.0'
