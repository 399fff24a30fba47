"""What is read from a checkpoint of train.py beside its weights."""

import contextlib
import os
import pickle
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file
from timm.utils import CheckpointSaver, ModelEmaV3

from timm_drnet.train.training_run import TrainingRun, read_training_run


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def write(folder, args=None, ema=False):
    """A checkpoint as timm writes it after the fifth epoch."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saver = CheckpointSaver(
        model, optimizer, args=args, model_ema=ModelEmaV3(model) if ema else None, checkpoint_dir=str(folder))
    saver.save_checkpoint(4, metric=50.0)
    return folder / 'last.pth.tar'


@pytest.mark.parametrize('ema', [False, True])
def test_checkpoint_of_timm(tmp_path, ema):
    args = Namespace(model='drnet', num_classes=7, epochs=20, model_kwargs={'stage': 'pretrain'}, mean=[0.1, 0.2, 0.3])
    run = read_training_run(write(tmp_path, args, ema))
    assert run == TrainingRun(vars(args), epochs=5, averaged=ema)
    assert (run.model, run.model_args) == ('drnet', {'stage': 'pretrain'})
    assert run.data_config == {'mean': [0.1, 0.2, 0.3]}


def test_arguments_get_the_names_that_create_model_has_for_them():
    run = TrainingRun({
        'in_chans': None, 'input_size': [1, 96, 64], 'gp': 'avgmax', 'bn_eps': 1e-3, 'bn_momentum': None, 'drop': 0.1,
        'crop_pct': 0.9, 'interpolation': '', 'model_kwargs': {'tau': 2.0}, 'img_size': None, 'std': None})
    assert run.model_args == {'in_chans': 1, 'global_pool': 'avgmax', 'bn_eps': 1e-3, 'tau': 2.0}
    assert run.data_config == {'input_size': [1, 96, 64], 'crop_pct': 0.9}
    assert TrainingRun({'in_chans': 4, 'input_size': [4, 8, 8]}).model_args == {'in_chans': 4}


@pytest.mark.parametrize(('args', 'expected'), [
    ({}, False),
    ({'pretrained': False}, False),
    ({'pretrained': True, 'pretrained_path': None, 'initial_checkpoint': ''}, True),
    ({'pretrained': True, 'pretrained_path': 'x.pth'}, False),
    ({'pretrained': True, 'initial_checkpoint': 'x.pth'}, False),
])
def test_start(args, expected):
    assert TrainingRun(args).starts_pretrained is expected


def test_weights_alone_say_nothing(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / 'weights.pth')
    assert read_training_run(tmp_path / 'weights.pth') == TrainingRun()
    save_file(torch.nn.Linear(2, 2).state_dict(), tmp_path / 'model.safetensors')
    assert read_training_run(tmp_path / 'model.safetensors') == TrainingRun()
    assert TrainingRun().model is None


def save(content, path):
    torch.save(content, path)


def save_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def dump(content, path):
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize('write', [save, save_legacy, dump])
@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: {'state_dict': {}, 'args': x}])
def test_code_in_a_checkpoint_does_not_run(tmp_path, write, wrap):
    path, mark = tmp_path / 'last.pth.tar', tmp_path / 'mark'
    write(wrap(Hostile(mark)), path)
    with pytest.raises(ValueError, match='could run code|not a checkpoint') as error:
        read_training_run(path)
    assert not mark.exists()
    assert '\n' not in str(error.value)
    if write is save:
        assert f'({os.mkdir.__module__}.mkdir)' in str(error.value)
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert mark.exists()  # it can run


@pytest.mark.parametrize('content', [b'', b'neither zip nor pickle', pickle.dumps([1, 2])])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / 'last.pth.tar').write_bytes(content)
    with pytest.raises(ValueError, match='not a checkpoint'):
        read_training_run(tmp_path / 'last.pth.tar')


def test_list_of_tensors_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='holds a list, not a dict'):
        read_training_run(tmp_path / 'list.pth')


@pytest.mark.parametrize('name', ['nowhere.pth.tar', 'nowhere.safetensors'])
def test_missing_file(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        read_training_run(tmp_path / name)
