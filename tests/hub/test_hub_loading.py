"""DRNets from the Hub: pushed and pulled by the real clients, in fresh processes, with a server on loopback.

Importing takes most of a process's time, so each does the work of many tests: `first` pulls into an empty cache what is
right and what is broken in every way, `second` pulls the same again when all is repaired.
"""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
from hub_server import READ_TOKEN, WRITE_TOKEN, Fault, HubServer, Request
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file, save
from timm.models import save_for_hf

import timm_drnet
from timm_drnet.cli import main

DRIVER = """
import contextlib, hashlib, io, json, os, sys, time
import timm, torch, timm_drnet
from timm.models import push_to_hf_hub
from timm_drnet.cli import main

time.sleep = lambda seconds: None  # the client waits between its attempts

def images(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))

@torch.no_grad()
def describe(model, logits, choices):
    state = {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in model.state_dict().items()}
    return {'state': state, 'logits': logits.tolist(), 'choices': choices.tolist()}

def create(name, shape=(6, 3, 64, 64), push=None, **kwargs):
    model = timm.create_model(name, pretrained=True, **kwargs).eval()
    if push:
        push_to_hf_hub(model, push, safe_serialization=True)
    x = images(shape)
    return describe(model, model(x), model.predict_resolution(x))

def transformers(name):
    from transformers import AutoConfig, AutoModelForImageClassification
    config = AutoConfig.from_pretrained(name)
    config.model_args.pop('num_classes', None)  # transformers 5.23 does not expect it there, timm 1.0.31 writes it
    model = AutoModelForImageClassification.from_pretrained(name, config=config).eval()
    x = images((6, 3, 64, 64))
    return describe(model.timm_model, model(x).logits, model.timm_model.predict_resolution(x))

def command(*argv):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return {'code': code, 'out': out.getvalue(), 'err': err.getvalue()}

def act(do, token=None, args=(), kwargs={}):
    os.environ.update({'HF_TOKEN': token} if token else {})
    try:
        return {'create': create, 'command': command, 'transformers': transformers}[do](*args, **kwargs)
    except Exception as error:
        return {'error': [c.__name__ for c in type(error).__mro__], 'message': str(error)}
    finally:
        os.environ.pop('HF_TOKEN', None)

print(json.dumps({name: act(**action) for name, action in json.load(sys.stdin).items()}))
"""

CHUNK = 10 * 1024 * 1024  # the client resumes a download at a multiple of it


class Run(NamedTuple):
    """A process that is over."""

    answers: dict[str, Any]
    """What became of each action."""
    requests: list[Request]
    """What it asked the server."""
    snapshots: dict[tuple[str, str, str], bytes]
    """Contents of the client's cache at its end, by repository, commit and path."""
    blobs: dict[Path, bytes]
    """All contents that the cache keeps, finished or not, by their places."""

    def asked(self, repo_id):
        """Methods, files and ranges of the requests for a repository."""
        return [
            (request.method, request.path.rpartition('/')[2], request.range) for request in self.requests
            if request.path.startswith(f'/{repo_id}/')]


def run(hub, home, actions, **env):
    """Run the driver with actions by name."""
    hub.requests.clear()
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', DRIVER], input=json.dumps(actions),
        env=hub.env(home, OMP_NUM_THREADS='1', **env), capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stderr
    snapshots = {}
    for folder in home.glob('hub/models--*/snapshots/*'):
        repo_id = folder.parents[1].name.removeprefix('models--').replace('--', '/')
        for path in folder.rglob('*'):
            snapshots[repo_id, folder.name, str(path.relative_to(folder))] = path.read_bytes()
    blobs = {path: path.read_bytes() for path in home.glob('hub/models--*/blobs/*')}
    return Run(json.loads(process.stdout.splitlines()[-1]), list(hub.requests), snapshots, blobs)


def create(name, **kwargs):
    return {'do': 'create', 'args': [name], 'kwargs': kwargs}


def command(*argv):
    return {'do': 'command', 'args': list(map(str, argv))}


@pytest.fixture(scope='module')
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """The first user's cache."""
    return tmp_path_factory.mktemp('home')


def images():
    """The driver's images."""
    return torch.randn((6, 3, 64, 64), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def make_model(seed):
    """A tiny DRNet of which no two norms are alike, and which uses all its resolutions."""
    torch.manual_seed(seed)
    model = timm_drnet.create_drnet(
        'test_resnet', resolutions=(64, 48, 32), predictor='inverted_residual', predictor_size=32, num_classes=5).eval()
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor += torch.rand_like(tensor)
    classifier = model.predictor.get_classifier()
    classifier.weight.normal_()
    classifier.bias -= model.predictor(torch.nn.functional.interpolate(images(), (32, 32), mode='bilinear')).mean(dim=0)
    return model


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Two models of different weights, as timm saves them."""
    folders = [tmp_path_factory.mktemp(name) for name in ('one', 'two')]
    for seed, folder in enumerate(folders):
        save_for_hf(make_model(seed), folder, safe_serialization=True)
    return folders


@pytest.fixture(scope='module')
def files(folders):
    """The files of the first model."""
    return {path.name: path.read_bytes() for path in folders[0].iterdir()}


def digest(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def state_of(folder):
    return {key: digest(value) for key, value in load_file(folder / 'model.safetensors').items()}


def flipped(data):
    """The same but for one bit of the last tensor, which loads without a word."""
    return data[:-1] + bytes([data[-1] ^ 1])


def with_config(files, group='model_args', **changes):
    """The files with other arguments of the model in their configuration."""
    config = json.loads(files['config.json'])
    config[group].update(changes)
    return {**files, 'config.json': json.dumps(config).encode()}


def with_pickle(files):
    """Weights in nothing but a pickle."""
    return {'config.json': files['config.json'], 'pytorch_model.bin': b'not even looked at'}


# What breaks on the way: the fault of model.safetensors, and words of the error.
BROKEN = {
    'cut': (lambda data: Fault(cut_after=len(data) // 2), ['org/cut', 'again']),
    'reset': (lambda data: Fault(cut_after=len(data) // 2, reset=True), ['org/reset', 'again']),
    'flipped': (lambda data: Fault(body=flipped(data)), ['org/flipped', 'sha256', 'expected', 'again']),
    'flipped-in-git': (
        lambda data: Fault(body=flipped(data)), ['org/flipped-in-git', 'git hash', 'expected', 'again']),
    'short': (lambda data: Fault(body=data[:-8]), ['org/short', 'again']),
    'announced-short': (
        lambda data: Fault(body=data[:-8], head=True), ['org/announced-short', 'sha256', 'expected', 'again']),
}

# What is wrong with the repository itself: its files, the type and words of the error. The files of the first three are
# read before timm comes to this package.
WRONG = {
    'not-json': (lambda files: {**files, 'config.json': b'<html>'}, 'JSONDecodeError', []),
    'not-timm': (lambda files: {**files, 'config.json': b'{"model_type": "vit"}'}, 'KeyError', ['architecture']),
    'architecture': (
        lambda files: {**files, 'config.json': files['config.json'].replace(b'"drnet"', b'"no_such_net"')},
        'RuntimeError', ['Unknown model', 'no_such_net']),
    'fewer': (
        lambda files: with_config(files, resolutions=[64, 48]), 'ValueError', ['3', '2', '(64, 48)', 'resolutions']),
    'more': (
        lambda files: with_config(files, resolutions=[64, 48, 40, 32]),
        'ValueError', ['3', '4', '(64, 48, 40, 32)', 'resolutions']),
    'pickle': (with_pickle, 'RuntimeError', ['org/pickle', 'model.safetensors', 'safe_serialization=True']),
    'switched-off': (
        lambda files: with_pickle(with_config(files, 'pretrained_cfg', file='x')),
        'ValueError', ['org/switched-off', "file is 'x'", 'left out']),
    'renamed': (
        lambda files: with_pickle(with_config(files, 'pretrained_cfg', hf_hub_filename='pytorch_model.bin')),
        'ValueError', ['org/renamed', 'hf_hub_filename', 'safetensors']),
    'classes': (
        lambda files: {**files, 'config.json': files['config.json'].replace(b'"num_classes": 5', b'"num_classes": -1')},
        'ValueError', ['org/classes', 'num_classes is -1']),
    'garbage': (
        lambda files: {**files, 'model.safetensors': b'garbage ' * 100},
        'RuntimeError', ['org/garbage', 'model.safetensors']),
}

# What the client finds out by itself.
UNSEEN = {
    'missing': ('RepositoryNotFoundError', ['Repository Not Found', 'org/missing']),
    'private': ('RepositoryNotFoundError', ['Repository Not Found', 'org/private', 'authenticated', 'token']),
    'token': ('HfHubHTTPError', ['401', 'org/token', 'Invalid credentials']),
    'versions@none': ('RevisionNotFoundError', ['Revision Not Found', 'org/versions', 'none']),
}

PULLS = {
    'pushed': create('hf-hub:org/pushed'),
    'resumed': create('hf-hub:org/resumed'),
    'adapted': create('hf-hub:org/pushed', num_classes=3, in_chans=1, shape=[6, 1, 64, 64]),
    **{name: create(f'hf-hub:org/{name}') for name in (*BROKEN, *WRONG, *UNSEEN)},
}

# The command line on the same: arguments, and words of its one line.
COMMANDS = {
    'flops missing': (['flops', 'hf-hub:org/missing'], ['org/missing', 'not found']),
    'flops private': (['flops', 'hf-hub:org/private'], ['org/private', 'not found', 'token']),
    'flops revision': (['flops', 'hf-hub:org/versions@none'], ['org/versions@none', 'revision not found']),
    'flops not-json': (['flops', 'hf-hub:org/not-json'], ['org/not-json', 'config.json']),
    'flops not-timm': (['flops', 'hf-hub:org/not-timm'], ['org/not-timm', 'config.json']),
    'flops cut-config': (['flops', 'hf-hub:org/cut-config'], ['org/cut-config', 'closed connection']),
    'flops architecture': (['flops', 'hf-hub:org/architecture'], ['org/architecture', 'no_such_net']),
    'predict missing': (['predict', 'PHOTO', '--model', 'hf-hub:org/missing'], ['org/missing', 'not found']),
    'predict token': (['predict', 'PHOTO', '--model', 'hf-hub:org/token'], ['org/token', 'credentials']),
    **{f'predict {name}': (['predict', 'PHOTO', '--model', f'hf-hub:org/{name}'], words)
       for name, words in (
           *((name, words) for name, (_, words) in BROKEN.items()),
           ('fewer', ['org/fewer', 'resolutions']),
           ('pickle', ['org/pickle', 'safetensors']),
           ('switched-off', ["file is 'x'"]),
           ('classes', ['num_classes is -1']),
           ('garbage', ['org/garbage', 'model.safetensors']),
       )},
}


@pytest.fixture(scope='module')
def pushed(hub, folders, tmp_path_factory):
    """What the process that pushes the first model knows about it."""
    action = {**create(f'local-dir:{folders[0]}', push='org/pushed'), 'token': WRITE_TOKEN}
    return run(hub, tmp_path_factory.mktemp('publisher'), {'push': action}).answers['push']


@pytest.fixture(scope='module')
def first(hub, home, folders, files, pushed, tmp_path_factory):
    """A process that starts with an empty cache."""
    padded = save(load_file(folders[0] / 'model.safetensors'), {'padding': CHUNK * 'x'})  # so large that it is resumed
    hub.add('org/resumed', {**files, 'model.safetensors': padded})
    hub.faults['org/resumed/model.safetensors'] = Fault(cut_after=len(padded) - 1000, times=1)
    for name, (fault, _) in BROKEN.items():
        hub.add(f'org/{name}', files, lfs=name != 'flipped-in-git')
        hub.faults[f'org/{name}/model.safetensors'] = fault(files['model.safetensors'])
    for name, (wrong, *_) in WRONG.items():
        hub.add(f'org/{name}', wrong(files))
    hub.add('org/private', files, private=True)
    hub.add('org/token', files)
    hub.add('org/cut-config', files)
    hub.faults['org/cut-config/config.json'] = Fault(cut_after=10)
    hub.add('org/no-weights', {'config.json': files['config.json']})
    oid = hub.add('org/versions', files, tag='v1')
    hub.add('org/versions', folders[1])
    hub.add('org/versions', files, branch='old')
    hub.add('org/removed', files, tag='v1')
    hub.add('org/removed', {'model.safetensors': None})

    photo = tmp_path_factory.mktemp('photo') / 'photo.png'
    Image.new('RGB', (80, 64), 'orange').save(photo)
    actions = {
        **PULLS,
        'local-dir': create(f'local-dir:{folders[0]}'),
        '@oid': create(f'hf-hub:org/versions@{oid}'),
        'removed@v1': create('hf-hub:org/removed@v1'),
        **{f'@{revision}': create(f'hf-hub:org/versions@{revision}') for revision in ('main', 'v1', 'old')},
        'flops': command('flops', 'hf-hub:org/no-weights', '--json'),
        'predict': command('predict', photo, '--model', 'hf-hub:org/pushed', '--json'),
        **{name: command(*(photo if arg == 'PHOTO' else arg for arg in argv))
           for name, (argv, _) in COMMANDS.items()},
    }
    for name in ('token', 'predict token'):
        actions[name] = {**actions[name], 'token': 'hf_wrong'}
    return run(hub, home, actions)


@pytest.fixture(scope='module')
def second(hub, home, files, first):
    """A process with the same cache, when all has been repaired."""
    hub.faults.clear()
    for name in (*WRONG, 'missing'):
        hub.add(f'org/{name}', files)
    hub.add('org/versions', files, branch='none')
    return run(hub, home, {**PULLS, 'private': {**PULLS['private'], 'token': READ_TOKEN}})


def test_pushed_model_comes_back_bit_for_bit(folders, pushed, first):
    model = make_model(0)
    assert pushed['choices'] == model.predict_resolution(images()).tolist()
    assert set(pushed['choices']) == {0, 1, 2}
    torch.testing.assert_close(torch.tensor(pushed['logits']), model(images()).detach())
    assert pushed['state'] == state_of(folders[0])
    assert first.answers['pushed'] == pushed


def test_push_holds_no_pickle(hub, pushed, files):
    names = {'.gitattributes', 'README.md', *files}
    assert set(hub.files('org/pushed')) == names == {'.gitattributes', 'README.md', 'config.json', 'model.safetensors'}


def test_revision_picks_the_weights(folders, pushed, first):
    for name in ('@v1', '@old', '@oid', 'removed@v1'):
        assert first.answers[name] == pushed
    assert first.answers['@main']['state'] == state_of(folders[1]) != pushed['state']


def test_folder_is_as_good(pushed, first):
    assert first.answers['local-dir'] == pushed


def test_classes_and_channels_are_adapted(folders, pushed, first):
    answer = first.answers['adapted']
    assert [len(logits) for logits in answer['logits']] == [3] * 6
    changed = {key for key, value in pushed['state'].items() if answer['state'][key] != value}
    convs = {'backbone.conv1.0.weight', 'predictor.conv_stem.weight'}
    assert changed == convs | {'backbone.fc.weight', 'backbone.fc.bias'}
    weights = load_file(folders[0] / 'model.safetensors')
    for key in convs:
        assert answer['state'][key] == digest(weights[key].sum(dim=1, keepdim=True))


def test_interrupted_download_is_resumed(pushed, first):
    assert first.answers['resumed'] == pushed
    downloads = [call for call in first.asked('org/resumed') if call[:2] == ('GET', 'model.safetensors')]
    assert [start for _, _, start in downloads] == [None, f'bytes={CHUNK}-']


def test_second_pull_asks_for_heads(pushed, first, second):
    assert ('GET', 'model.safetensors', None) in first.asked('org/pushed')
    assert second.answers['pushed'] == pushed
    assert set(second.asked('org/pushed')) == {('HEAD', 'config.json', None), ('HEAD', 'model.safetensors', None)}


def test_offline_pull_asks_for_nothing(hub, home, pushed, second):
    offline = run(hub, home, {
        'pushed': create('hf-hub:org/pushed'), 'v1': create('hf-hub:org/versions@v1'),
        'never': create('hf-hub:org/never'), 'command': command('flops', 'hf-hub:org/never'),
    }, HF_HUB_OFFLINE='1')
    assert offline.requests == []
    assert offline.answers['pushed'] == offline.answers['v1'] == pushed
    assert 'LocalEntryNotFoundError' in offline.answers['never']['error']
    check_command(offline.answers['command'], ['org/never', 'cache'])


def test_no_connection(capsys, monkeypatch):
    """In this process, whose endpoint is a port where nobody listens."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # the client waits between its attempts
    with pytest.raises(LocalEntryNotFoundError, match='check your connection'):
        timm.create_model('hf-hub:org/pushed', pretrained=True)
    code = main(['flops', 'hf-hub:org/pushed'])
    captured = capsys.readouterr()
    check_command({'code': code, 'out': captured.out, 'err': captured.err}, ['org/pushed', 'connection'])


def check_error(answer, error, words):
    assert error in answer.get('error', ()), answer
    for word in words:
        assert word in answer['message']


def check_command(answer, words):
    assert answer.get('code') == 2, answer
    assert answer['out'] == ''
    [line] = answer['err'].splitlines()
    for word in words:
        assert word.lower() in line.lower()


@pytest.mark.parametrize('name', BROKEN)
def test_broken_download(pushed, first, second, name):
    check_error(first.answers[name], 'RuntimeError', BROKEN[name][1])
    assert second.answers[name] == pushed


@pytest.mark.parametrize('name', WRONG)
def test_wrong_repository(pushed, first, second, name):
    check_error(first.answers[name], *WRONG[name][1:])
    assert second.answers[name] == pushed


@pytest.mark.parametrize('name', UNSEEN)
def test_repository_out_of_reach(pushed, first, second, name):
    check_error(first.answers[name], *UNSEEN[name])
    assert second.answers[name] == pushed


def test_pickle_is_not_even_asked_for(first):
    assert {name for _, name, _ in first.asked('org/pickle')} == {'config.json', 'model.safetensors'}
    assert {name for _, name, _ in first.asked('org/switched-off')} == {'config.json'}


@pytest.mark.parametrize('which', ['first', 'second'])
def test_no_broken_file_in_the_cache(hub, request, which):
    run = request.getfixturevalue(which)
    assert len(run.snapshots) > 20
    for (repo_id, oid, path), content in run.snapshots.items():
        assert content == hub.repositories[repo_id].commits[oid].files[path].content, (repo_id, path)
    kept = {repo_id for repo_id, _, path in run.snapshots if path == 'model.safetensors'}
    broken = {f'org/{name}' for name in BROKEN}
    assert kept & broken == (set() if which == 'first' else broken)
    right = {file.etag: file.content for repository in hub.repositories.values()
             for commit in repository.commits.values() for file in commit.files.values()}
    for path, content in run.blobs.items():
        assert content == right.get(path.name), path  # nothing unfinished either


@pytest.mark.parametrize('name', COMMANDS)
def test_command_tells_it_in_one_line(first, name):
    check_command(first.answers[name], COMMANDS[name][1])


def test_commands_on_a_repository(first):
    assert first.answers['predict']['code'] == 0
    assert first.answers['flops']['code'] == 0
    rows = json.loads(first.answers['flops']['out'])['rows']
    assert [row['resolution'] for row in rows] == [64, 48, 32]
    assert {name for _, name, _ in first.asked('org/no-weights')} == {'config.json'}


@pytest.mark.skipif(importlib.util.find_spec('transformers') is None, reason='needs transformers')
def test_transformers_loads_it(hub, folders, pushed, tmp_path):
    answers = run(hub, tmp_path, {
        name: {'do': 'transformers', 'args': [where]}
        for name, where in (('folder', str(folders[0])), ('hub', 'org/pushed'))}).answers
    for answer in answers.values():
        assert answer['state'] == pushed['state']
        assert answer['choices'] == pushed['choices']
        torch.testing.assert_close(torch.tensor(answer['logits']), torch.tensor(pushed['logits']))
