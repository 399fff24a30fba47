"""``timm-drnet publish`` from its arguments to the folder, the repository and the exit code."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer
from huggingface_hub import ModelCard
from huggingface_hub.constants import ENDPOINT as HF_ENDPOINT
from safetensors.torch import load, save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver, ModelEmaV3

import timm_drnet
from cli.refusals import refused
from timm_drnet.cli import main
from timm_drnet.evaluate.validation import validate

KWARGS = {'backbone': 'test_resnet', 'resolutions': (64, 48, 32), 'predictor': 'inverted_residual',
          'predictor_size': 32, 'alpha': 0.01, 'eta': 0.3, 'tau': 1.5}
LABELS = ['ape', 'bear', 'cat', 'dog', 'eel', 'fox']
FILES = ['README.md', 'config.json', 'model.safetensors']

# Runs commands in one process, since importing takes its time. Of a model that is asked for it saves the weights.
DRIVER = """
import contextlib, io, json, os, sys
import timm, torch
from timm_drnet.cli import main

answers = []
for action in json.load(sys.stdin):
    os.environ.pop('HF_TOKEN', None)
    if action['token']:
        os.environ['HF_TOKEN'] = action['token']
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(['publish', *action['argv']])
    answers.append([code, out.getvalue(), err.getvalue()])
    if action['load']:
        model = timm.create_model(action['load'], pretrained=True)
        torch.save([model.state_dict(), model.args.alpha, model.pretrained_cfg['label_names']], action['to'])
print(json.dumps(answers))
"""


def make_model(seed, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model('drnet', num_classes=6, **{**KWARGS, **kwargs}).eval()


def write_checkpoint(folder, trained, averaged=None, **more):
    """A checkpoint as timm's train.py writes it."""
    args = Namespace(**{
        'model': 'drnet', 'num_classes': 6, 'model_kwargs': KWARGS, 'in_chans': None, 'gp': None, 'bn_eps': None,
        'bn_momentum': None, 'pretrained': False, 'pretrained_path': None, 'initial_checkpoint': '', 'epochs': 3,
        'batch_size': 32, 'opt': 'sgd', 'lr': 0.05, 'sched': 'cosine', 'input_size': [3, 64, 64], 'crop_pct': 0.8,
        'interpolation': 'bicubic', 'mean': None, 'std': [0.2, 0.3, 0.4], 'data_dir': '/home/someone', **more})
    ema = None
    if averaged is not None:
        ema = ModelEmaV3(trained)
        ema.module.load_state_dict(averaged.state_dict())
    folder.mkdir(exist_ok=True)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    CheckpointSaver(trained, optimizer, args, ema, checkpoint_dir=str(folder)).save_checkpoint(2, metric=50.0)
    return folder / 'last.pth.tar'


def write_results(path, model, measured, **more):
    """What ``timm-drnet validate --output`` writes."""
    x = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    result = dataclasses.asdict(validate(model, [(x, torch.arange(12) % 6)]))
    report = {
        'model': 'drnet', 'checkpoint': measured, 'split': 'validation', 'limit': None, 'crop_pct': 0.8,
        'interpolation': 'bicubic', 'amp': False, **result, 'unreadable': [], **more}
    path.write_text(json.dumps(report))
    return result


def same_state(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


@pytest.fixture(scope='module')
def models():
    """Two models of different weights."""
    return make_model(1), make_model(2)


@pytest.fixture
def checkpoint(models, tmp_path):
    return write_checkpoint(tmp_path / 'run', models[0])


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run the command without a network and without a token: exit code, stdout, stderr."""

    def refuse(*args):
        raise AssertionError('a dry run must not open a connection')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.delenv('HF_TOKEN', raising=False)

    def run(source, *args, repo='org/name', dry=tmp_path / 'dry'):
        code = main(['publish', str(source), repo, *(['--dry-run', str(dry)] if dry else []), *map(str, args)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.mark.parametrize('ema', [False, True])
def test_checkpoint_needs_no_further_argument(run, models, tmp_path, ema):
    path = write_checkpoint(tmp_path / 'run', models[0], models[1] if ema else None)
    code, out, err = run(path)
    assert (code, err) == (0, '')
    assert f'weights     {"averaged (EMA) " if ema else ""}weights of {path}, epochs done: 3' in out
    assert 'nothing was sent' in out
    assert sorted(os.listdir(tmp_path / 'dry')) == FILES
    model = timm.create_model(f'local-dir:{tmp_path / "dry"}', pretrained=True).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), models[ema](x))
    assert same_state(model.state_dict(), models[ema].state_dict())
    for name in ('resolutions', 'predictor_size', 'alpha', 'eta', 'tau'):
        assert getattr(model.args, name) == KWARGS[name]
    data = timm.data.resolve_model_data_config(model)
    assert (data['crop_pct'], data['interpolation'], tuple(data['std'])) == (0.8, 'bicubic', (0.2, 0.3, 0.4))
    card = ModelCard.load(tmp_path / 'dry/README.md')
    assert 'epochs: 3' in card.text
    assert ('averaged' in card.text) == ema
    assert '/home' not in str(card) + (tmp_path / 'dry/config.json').read_text()


def test_pooling_and_channels_of_the_training(run, tmp_path):
    model = make_model(4, in_chans=1, global_pool='max')
    path = write_checkpoint(tmp_path / 'run', model, gp='max', input_size=[1, 64, 64], std=[0.2])
    assert run(path)[0] == 0
    loaded = timm.create_model(f'local-dir:{tmp_path / "dry"}', pretrained=True).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    assert "convert('L')" in (tmp_path / 'dry/README.md').read_text()


def test_card_is_made_of_what_was_given(run, models, checkpoint, tmp_path):
    result = write_results(tmp_path / 'results.json', models[0], None)
    (tmp_path / 'labels.txt').write_text('\n'.join(LABELS) + '\n\n')
    code, out, err = run(
        checkpoint, '--results', tmp_path / 'results.json', '--labels', tmp_path / 'labels.txt', '--license', 'mit',
        '--dataset', 'org/photos', '--dataset', 'imagenet-1k', '--base-model', 'timm/resnet18.a1_in1k')
    assert (code, err) == (0, '')
    assert 'licence     mit (--license' in out
    assert f'{result["dynamic"]["top1"]:.2f} % top-1 of 12 images, measured on drnet' in out
    data = ModelCard.load(tmp_path / 'dry/README.md').data
    assert (data.license, data.datasets, data.base_model) == (
        'mit', ['org/photos', 'imagenet-1k'], 'timm/resnet18.a1_in1k')
    assert [r.metric_value for r in data.eval_results] == [
        round(result['dynamic'][key] / 100, 4) for key in ('top1', 'top5')]
    model = timm.create_model(f'local-dir:{tmp_path / "dry"}')
    assert list(model.pretrained_cfg['label_names']) == LABELS
    assert model.pretrained_cfg['license'] == 'mit'
    assert '6: ape, bear, cat, dog, eel, fox' in (tmp_path / 'dry/README.md').read_text()


def test_licence_base_model_and_results_are_not_invented(run, checkpoint, tmp_path):
    _, out, _ = run(checkpoint)
    for line in (
            'licence     other (not named; --license)', 'base model  not named', 'accuracy    not measured',
            'labels      none in the configuration', 'data sets   not named'):
        assert line in out
    card = (tmp_path / 'dry/README.md').read_text()
    assert 'Not measured.' in card
    assert 'No licence was named for the weights' in card
    assert json.loads((tmp_path / 'dry/config.json').read_text())['pretrained_cfg']['license'] == 'other'


def test_shipped_model(run, tmp_path):
    code, out, err = run(timm_drnet.DEFAULT_MODEL)
    assert (code, err) == (0, '')
    assert "licence     apache-2.0 (the model's configuration" in out
    assert f'`{timm_drnet.DEFAULT_MODEL}`' in (tmp_path / 'dry/README.md').read_text()


def test_trained_again_is_not_called_by_the_name_of_the_registered_weights(run, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('drnet_resnet18d_050', num_classes=6)
    path = write_checkpoint(tmp_path / 'run', model, model='drnet_resnet18d_050', model_kwargs={})
    assert run(path)[0] == 0
    cfg = json.loads((tmp_path / 'dry/config.json').read_text())['pretrained_cfg']
    assert {'tag', 'origin_url', 'label_names'}.isdisjoint(cfg)
    assert '| model | `drnet_resnet18d_050` |' in (tmp_path / 'dry/README.md').read_text()


def test_base_model_of_a_run_that_started_from_the_hub(run, models, tmp_path):
    args = {'pretrained': True, 'model_kwargs': {**KWARGS, 'backbone': 'test_resnet.r160_in1k'}}
    code, out, _ = run(write_checkpoint(tmp_path / 'run', models[0], **args))
    assert code == 0
    assert 'base model  timm/test_resnet.r160_in1k' in out
    assert ModelCard.load(tmp_path / 'dry/README.md').data.base_model == 'timm/test_resnet.r160_in1k'


def test_local_folder_and_safetensors_file(run, models, tmp_path):
    save_for_hf(models[0], str(tmp_path / 'saved'), safe_serialization=True)
    assert run(f'local-dir:{tmp_path / "saved"}')[0] == 0
    weights = tmp_path / 'saved/model.safetensors'
    refused(run(weights, dry=tmp_path / 'b'), 'holds no arguments of train.py; name its model with --model')
    kwargs = ['--num-classes', 6, '--model-kwargs', *(f'{key}={value}' for key, value in KWARGS.items())]
    assert run(weights, '--model', 'drnet', *kwargs, dry=tmp_path / 'b')[0] == 0
    for folder in ('dry', 'b'):
        model = timm.create_model(f'local-dir:{tmp_path / folder}', pretrained=True)
        assert same_state(model.state_dict(), models[0].state_dict())
        assert model.args.eta == 0.3


def test_pretrain_stage_is_published_only_on_purpose(run, tmp_path):
    model = make_model(3, stage='pretrain')
    path = write_checkpoint(tmp_path / 'run', model, model_kwargs={**KWARGS, 'stage': 'pretrain'})
    refused(run(path), 'is of the pretrain stage and would run every image at 64 px; publish that of the joint stage')
    refused(run(path, '--model-kwargs', 'stage=joint'), 'its predictor is not trained')
    assert run(path, '--model-kwargs', 'stage=pretrain')[0] == 0
    assert 'pretrain stage and not dynamic' in (tmp_path / 'dry/README.md').read_text()
    assert timm.create_model(f'local-dir:{tmp_path / "dry"}').args.stage == 'pretrain'


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused(run, models, tmp_path):
    torch.save({'state_dict': models[0].state_dict(), 'args': Hostile(tmp_path / 'mark')}, tmp_path / 'last.pth.tar')
    refused(run(tmp_path / 'last.pth.tar'), r'last.pth.tar: holds more than tensors and plain values \(\w+.mkdir\)')
    assert not (tmp_path / 'mark').exists()
    assert not (tmp_path / 'dry').exists()


def test_bad_source(run, models, checkpoint, tmp_path):
    refused(run(tmp_path / 'nowhere.pth.tar'), 'nowhere.pth.tar: no such file')
    refused(run(tmp_path), f'this is a folder; the model saved in it is local-dir:{tmp_path}')
    refused(run('no_such_model'), "cannot create model 'no_such_model'")
    refused(run('drnet', '--model-kwargs', 'backbone=resnetblur18'),
            'No pretrained weights.* Give trained weights with a checkpoint as CHECKPOINT_OR_MODEL')
    refused(run('drnet', '--model', 'drnet'), '--model drnet: drnet names a model already')
    (tmp_path / 'noise.pth').write_bytes(b'noise')
    refused(run(tmp_path / 'noise.pth'), 'noise.pth: not a checkpoint')
    refused(run(checkpoint, '--num-classes', 7), 'the weights are for 6 classes, not 7')
    refused(run(checkpoint, '--model-kwargs', 'resolutions=(64,32)'), 'norms for 3 resolutions')
    refused(run(checkpoint, '--model', 'test_resnet'), 'cannot create model')
    plain = timm.create_model('test_resnet', num_classes=6)
    path = write_checkpoint(tmp_path / 'plain', plain, model='test_resnet', model_kwargs={})
    refused(run(path), 'test_resnet is not a DRNet')
    save_file(models[0].state_dict(), tmp_path / 'weights.safetensors')
    (tmp_path / 'weights.safetensors').write_bytes((tmp_path / 'weights.safetensors').read_bytes()[:1000])
    refused(run(tmp_path / 'weights.safetensors', '--model', 'drnet', '--num-classes', 6), 'not a checkpoint')
    assert not (tmp_path / 'dry').exists()




@pytest.mark.parametrize(('args', 'words'), [
    (['--create-pr'], '--dry-run and --create-pr: use one of them'),
    (['--base-model', 'resnet18'], '--base-model resnet18: name the organization'),
    (['--base-model', 'a b/c'], '--base-model a b/c: Repo id must use'),
    (['--dataset', 'Caltech 101'], '--dataset Caltech 101: Repo id must use'),
    (['--labels', '/nowhere.txt'], '--labels /nowhere.txt: No such file'),
    (['--labels', __file__], r'--labels .*: \d+ lines for the 6 classes of the model'),
    (['--results', '/nowhere.json'], '--results /nowhere.json: No such file'),
    (['--results', __file__], '--results .*: not JSON; give the JSON of timm-drnet validate'),
])
def test_bad_option(run, checkpoint, args, words):
    refused(run(checkpoint, *args), words)


@pytest.mark.parametrize(('repo', 'words'), [
    ('name', 'ORG/NAME name: name the organization or user too, as in ORG/name'),
    ('a/b/c', 'Repo id must be in the form'), ('org/na me', 'Repo id must use'), ('org/-x', 'Repo id must use'),
    ('org/a--b', 'Cannot have -- or ..'), ('', 'Repo id must use'),
])
def test_bad_repository(run, checkpoint, repo, words):
    refused(run(checkpoint, repo=repo), words)


def test_bad_folder(run, checkpoint, tmp_path):
    refused(run(checkpoint, dry=tmp_path / 'no/such'), '--dry-run .*: there is no folder .*no; create it first')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full/file').write_text('mine')
    refused(run(checkpoint, dry=tmp_path / 'full'), 'full: this folder is not empty')
    refused(run(checkpoint, dry=tmp_path / 'full/file'), 'this is a file or a link')
    assert (tmp_path / 'full/file').read_text() == 'mine'
    (tmp_path / 'empty').mkdir()
    assert run(checkpoint, dry=tmp_path / 'empty')[0] == 0


def test_results_that_do_not_belong_to_the_model(run, models, checkpoint, tmp_path):
    path = tmp_path / 'results.json'
    write_results(path, make_model(1, resolutions=(96, 64)), None)
    refused(run(checkpoint, '--results', path), r'results.json: measured on another model: resolutions \(96, 64\) and')
    path.write_text('{"model": "drnet"}')
    refused(run(checkpoint, '--results', path), 'results.json: not the JSON of timm-drnet validate')
    assert not (tmp_path / 'dry').exists()


def test_pull_request_against_a_branch(run, checkpoint):
    refused(run(checkpoint, '--create-pr', '--revision', 'dev', dry=None), 'a pull request is for main')


# From here on with a server, in a fresh process.


class Pushed(NamedTuple):
    """What pushing led to."""

    hub: HubServer
    """The server, afterwards."""
    before: dict[str, str]
    """The commits of repositories that were there."""
    answers: dict[str, list[tuple[int, str, str]]]
    """Exit code, stdout and stderr of each push, by what it is about."""
    folder: Path
    """Where the models that were loaded again are."""


@pytest.fixture(scope='module')
def pushed(models, tmp_path_factory):
    """All pushes, by one process."""
    folder = tmp_path_factory.mktemp('pushed')
    first = str(write_checkpoint(folder / 'first', models[0]))
    second = str(write_checkpoint(folder / 'second', models[0], averaged=models[1]))
    write_results(folder / 'results.json', models[1], None)
    (folder / 'labels.txt').write_text('\n'.join(LABELS))
    labels = ['--labels', str(folder / 'labels.txt')]
    results = ['--results', str(folder / 'results.json'), '--dataset', 'org/photos']
    name = 'hf-hub:org/name'
    actions = {
        'name': [
            {'argv': [first, 'org/name', *labels], 'load': name, 'to': str(folder / '1.pth')},
            {'argv': [first, 'org/name', *labels]},
            {'argv': [second, 'org/name', *labels, *results], 'load': name, 'to': str(folder / '2.pth')},
            {'argv': [second, 'org/name', *labels, *results, '--replace-card', '--message', 'Add results']}],
        'revisions': [
            {'argv': [first, 'org/old', '--revision', 'dev']},
            {'argv': [first, 'org/old', '--create-pr', '--replace-card']},
            {'argv': [first, 'org/secret', '--private']},
            {'argv': [first, 'org/public', '--private']},
            {'argv': [first, 'org/old', '--revision', 'nowhere']},
            {'argv': [first, 'org/new', '--revision', 'dev']}],
        'tokens': [
            {'argv': [first, 'org/denied'], 'token': None}, {'argv': [first, 'org/denied'], 'token': 'hf_wrong'},
            {'argv': [first, 'org/denied'], 'token': READ_TOKEN}, {'argv': [first, 'org/theirs'], 'token': READ_TOKEN}],
    }
    with HubServer() as hub:
        before = {name: hub.add(name, {'README.md': b'# Mine\n', 'notes.txt': b'mine'}) for name in (
            'org/old', 'org/public', 'org/theirs')}
        hub.add('org/old', {'notes.txt': b'dev'}, branch='dev')
        process = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', DRIVER], env=hub.env(folder / 'home'), capture_output=True,
            text=True, check=False, input=json.dumps([
                {'token': WRITE_TOKEN, 'load': None, **action} for several in actions.values() for action in several]))
        assert process.returncode == 0, process.stderr
        answers = iter(json.loads(process.stdout))
        yield Pushed(hub, before, {key: [next(answers) for _ in several] for key, several in actions.items()}, folder)


def messages(hub, repo_id, revision='main'):
    """Of the commits, newest first."""
    repository = hub.repositories[repo_id]
    commit, found = repository.resolve(revision), []
    while commit:
        found.append(commit.message)
        commit = repository.commits.get(commit.parent)
    return found


def test_push(pushed, models):
    """A new repository, the same again, other weights, another card; all of it loads as it was trained."""
    hub, answers = pushed.hub, pushed.answers['name']
    assert [code for code, _, _ in answers] == [0] * 4, answers

    oids = [re.search(f'^{hub.url}/org/name/commit/(\\w+)$', out, re.MULTILINE)[1] for _, out, _ in answers]
    assert oids[0] == oids[1]
    assert len(set(oids)) == 3
    assert ['nothing has changed' in out for _, out, _ in answers] == [False, True, False, False]
    assert ['README.md: the repository has one' in out for _, out, _ in answers] == [False, True, True, False]
    assert all(out.endswith("timm.create_model('hf-hub:org/name', pretrained=True)\n") for _, out, _ in answers)
    assert messages(hub, 'org/name') == ['Add results', 'Add model', 'Add model', 'initial commit']
    assert not hub.repositories['org/name'].private

    for number, model in enumerate(models, 1):
        state, alpha, names = torch.load(pushed.folder / f'{number}.pth')
        assert same_state(state, model.state_dict())
        assert (alpha, list(names)) == (0.01, LABELS)
    files = [hub.files('org/name', oid) for oid in oids]
    assert all(sorted(set(found) - {'.gitattributes'}) == FILES for found in files)
    assert same_state(load(files[0]['model.safetensors'].content), load(files[1]['model.safetensors'].content))
    cards = [ModelCard(found['README.md'].content.decode()) for found in files]
    assert str(cards[0]) == str(cards[2]) != str(cards[3])
    assert cards[0].data.eval_results is None
    assert len(cards[3].data.eval_results) == 2


def test_branches_pull_requests_and_private_repositories(pushed, models):
    hub, answers = pushed.hub, pushed.answers['revisions']
    assert [code for code, _, _ in answers] == [0, 0, 0, 2, 2, 2], answers
    assert all(err.count('\n') == 1 and err.startswith('timm-drnet publish: ') for _, _, err in answers[3:])

    dev = hub.files('org/old', 'dev')
    assert same_state(load(dev['model.safetensors'].content), models[0].state_dict())
    assert (dev['README.md'].content, dev['notes.txt'].content) == (b'# Mine\n', b'dev')
    assert "timm.create_model('hf-hub:org/old@dev', pretrained=True)" in answers[0][1]
    assert 'README.md: the repository has one' in answers[0][1]

    request = hub.files('org/old', 'refs/pr/1')
    assert same_state(load(request['model.safetensors'].content), models[0].state_dict())
    assert request['README.md'].content.startswith(b'---\n')
    assert hub.repositories['org/old'].resolve('main').oid == pushed.before['org/old']
    assert f'{hub.url}/org/old/discussions/1\n' in answers[1][1]
    assert "timm.create_model('hf-hub:org/old@refs/pr/1', pretrained=True)" in answers[1][1]

    assert hub.repositories['org/secret'].private
    assert 'org/public exists and is public' in answers[3][2]
    assert hub.repositories['org/public'].resolve('main').oid == pushed.before['org/public']
    assert "org/old has no branch 'nowhere': create it first" in answers[4][2]
    assert "org/new does not exist, so it has no branch 'dev'" in answers[5][2]
    assert 'org/new' not in hub.repositories


def test_tokens(pushed):
    hub, answers = pushed.hub, pushed.answers['tokens']
    words = ['no token for the Hub: run "hf auth login"', 'does not accept the token',
             r'no permission to write to org/denied \(You must use',
             r'no permission to write to org/theirs \(You must use']
    for (code, _, err), match in zip(answers, words, strict=True):
        assert code == 2
        assert re.fullmatch(f'timm-drnet publish: .*{match}.*\n', err), err
    assert answers[0][1] == ''  # before any work
    assert 'org/denied' not in hub.repositories
    assert hub.repositories['org/theirs'].resolve('main').oid == pushed.before['org/theirs']


def test_no_connection(checkpoint, capsys, monkeypatch):
    """In this process, whose endpoint is a port where nobody listens."""
    monkeypatch.setenv('HF_TOKEN', WRITE_TOKEN)
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # the client waits between its attempts
    assert main(['publish', str(checkpoint), 'org/name']) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(f'timm-drnet publish: cannot reach {HF_ENDPOINT}: .*refused.*\n', err), err
