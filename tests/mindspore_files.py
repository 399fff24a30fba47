"""The genuine checkpoints of MindSpore: a module of tests gets them with ``pytest_plugins = ['mindspore_files']``."""

import lzma
import shutil
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / 'fixtures' / 'mindspore'


@pytest.fixture(scope='session')
def checkpoints(tmp_path_factory):
    """The genuine classifier's and predictor's files, unpacked once."""
    folder = tmp_path_factory.mktemp('mindspore')
    for name in ('classifier_net.ckpt', 'predictor_net.ckpt'):
        with lzma.open(FIXTURES / f'{name}.xz') as packed, (folder / name).open('wb') as unpacked:
            shutil.copyfileobj(packed, unpacked)
    yield folder / 'classifier_net.ckpt', folder / 'predictor_net.ckpt'
    shutil.rmtree(folder)  # pytest keeps the folders of three sessions
