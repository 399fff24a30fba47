"""The server of an export, in processes of its own: answers, refusals, and how it stops."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest
import torch
from processes import is_alive, processes_below

import timm_drnet
from timm_drnet.data.reading import image_loader
from timm_drnet.deploy.export import export_model
from timm_drnet.deploy.onnx_runner import OnnxDRNet

pytest.importorskip('mosec', reason='needs mosec, which is not made for Windows')

ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / 'examples/photos').glob('*.jpg'))


@pytest.fixture(scope='module')
def export(tmp_path_factory):
    """A tiny cascade that stops half of the example photographs at its smaller resolution."""
    torch.manual_seed(0)
    model = timm_drnet.create_drnet('test_resnet', resolutions=(64, 48), router='cascade', num_classes=7).eval()
    with torch.no_grad():
        x = torch.stack([image_loader(model)(path) for path in PHOTOS])
        model.get_classifier().weight.mul_(50)
        sure = model.forward_at(x, 1).softmax(dim=1).amax(dim=1).sort().values
    model.args = replace(model.args, thresholds=(float(sure[5:7].mean()),))
    folder = tmp_path_factory.mktemp('served') / 'export'
    export_model(model, folder, timm_drnet.cost_table(model), labels=list('abcdefg'))
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder to ask for: photographs, what is none, and ways out."""
    folder = tmp_path / 'photos'
    shutil.copytree(ROOT / 'examples/photos', folder / 'more', ignore=shutil.ignore_patterns('README.md'))
    (folder / 'text.jpg').write_text('no image')
    (folder / '.hidden').write_text('')
    (tmp_path / 'elsewhere').mkdir()
    shutil.copy(PHOTOS[0], tmp_path / 'elsewhere/secret.jpg')
    (folder / 'out').symlink_to(tmp_path / 'elsewhere')
    (folder / 'secret.jpg').symlink_to(tmp_path / 'elsewhere/secret.jpg')
    os.mkfifo(folder / 'pipe')
    return folder


@contextmanager
def served(export, photos, tmp_path):
    """The process of a server, and its address; PyTorch cannot be imported there."""
    for name in ('torch', 'timm', 'timm_drnet'):
        (tmp_path / f'none/{name}').mkdir(parents=True)
        (tmp_path / f'none/{name}/__init__.py').write_text(f'raise ImportError("{name} in the server")')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    # The names of sockets may have some 100 letters, which pytest's own folders use up.
    sockets = tempfile.mkdtemp(prefix='mosec')
    process = subprocess.Popen(
        [sys.executable, ROOT / 'examples/serve/server.py', export, '--photos', photos, '--threads', '1',
         '--port', str(port)],
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'none'), 'TMPDIR': sockets},
        stderr=(tmp_path / 'log').open('wb'))
    try:
        deadline = time.monotonic() + 60
        while answer(f'http://127.0.0.1:{port}/')[0] != 200:
            assert process.poll() is None, (tmp_path / 'log').read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, f'http://127.0.0.1:{port}'
    finally:
        for pid in processes_below(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        shutil.rmtree(sockets, ignore_errors=True)


def answer(address, body=None):
    """Status and text of an answer; 0 if nobody is there."""
    try:
        with urlopen(address, body, timeout=30) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except URLError:
        return 0, ''


def ask(address, name):
    return answer(f'{address}/photos', json.dumps({'name': name}).encode())


def test_server(export, photos, tmp_path):
    runner = OnnxDRNet(export, threads=1)
    expected = [asdict(found) for found in runner.classify(PHOTOS, topk=5)]
    assert {found['resolution'] for found in expected} == {64, 48}

    def check(found, wanted):
        assert tuple(found['labels']) == wanted['labels']
        assert found['probabilities'] == pytest.approx(wanted['probabilities'], abs=1e-5)
        assert (found['resolution'], found['flops']) == (wanted['resolution'], wanted['flops'])

    with served(export, photos, tmp_path) as (process, address), ThreadPoolExecutor(12) as pool:
        # At once, and what is no image among them; again until some came so close that they were one batch.
        uploads = [path.read_bytes() for path in PHOTOS]
        uploads[3] = uploads[3][:200]
        for _ in range(20):
            answers = list(pool.map(lambda upload: answer(f'{address}/classify', upload), uploads))
            for i, (status, text) in enumerate(answers):
                if i == 3:
                    assert (status, text[:37]) == (422, 'request validation error: the upload:')
                    assert str(tmp_path) not in text
                else:
                    assert status == 200
                    check(json.loads(text), expected[i])
            metrics = answer(f'{address}/metrics')[1].splitlines()
            requests, batches = (
                sum(float(line.split()[1]) for line in metrics if line.startswith(f'mosec_service_batch_size_{name}'))
                for name in ('sum', 'count'))
            if requests > batches > 0:
                break
        else:
            pytest.fail('every image was a batch of its own')

        status, text = ask(address, '.')
        assert status == 200
        rows = json.loads(text)
        assert [row['image'] for row in rows] == ['text.jpg', *(f'more/{path.name}' for path in PHOTOS)]
        assert rows[0]['error'] == 'not an image of a format that Pillow can read'
        for found, wanted in zip(rows[1:], expected, strict=True):
            check(found, wanted)
        status, text = ask(address, 'more/saxophone.jpg')
        assert [row['image'] for row in json.loads(text)] == ['more/saxophone.jpg']

        outside = str(tmp_path / 'elsewhere/secret.jpg')
        inside = str(photos / 'more/saxophone.jpg')
        for name in (
                outside, inside, '../elsewhere/secret.jpg', 'more/../../elsewhere', 'more/../text.jpg', 'secret.jpg',
                'out', 'out/secret.jpg', 'pipe', 'nothing', 'more/saxophone.jpg/x', 'a\0b', '\ud800', 'x' * 5000):
            status, text = ask(address, name)
            assert status == 422, name
            assert text.endswith(': no file or folder of that name below the folder of the server')
        for name in (3, None, ['a']):
            assert ask(address, name) == (
                422, 'request validation error: send {"name": "FILE OR FOLDER"}, a name below the folder of the server')
        assert answer(f'{address}/photos', b'{')[0] == 400
        for i in range(101):
            (photos / f'{i}.jpg').write_text('')
        status, text = ask(address, '')
        assert status == 422
        assert "'' holds more than 100 files" in text

        started = processes_below(process.pid)
        assert len(started) >= 5
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        deadline = time.monotonic() + 30
        while any(is_alive(pid) for pid in started):  # Python's own helper notices a moment later
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_server_whose_model_is_killed_fails(export, photos, tmp_path):
    with served(export, photos, tmp_path) as (process, _):
        largest = max(
            processes_below(process.pid),
            key=lambda pid: int(Path(f'/proc/{pid}/statm').read_text().split()[1]))
        os.kill(largest, signal.SIGKILL)
        assert process.wait(30) == 1


@pytest.mark.parametrize(('arguments', 'told'), [
    (['nowhere'], 'nowhere: no export with a runner; make one by timm-drnet export'),
    (['{export}', '--photos', 'nowhere'], 'invalid --photos nowhere: use a folder'),
    (['{export}', '--port', '{taken}'], 'Please change to a free one (use `--port`).'),
    (['{export}', '--decoders', '0'], 'invalid --decoders 0: use at least 1'),
])
def test_bad_arguments(export, arguments, told):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        words = [word.format(export=export, taken=taken.getsockname()[1]) for word in arguments]
        done = subprocess.run(
            [sys.executable, ROOT / 'examples/serve/server.py', *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    known = [*project['dependencies'], *project['optional-dependencies']['test']]
    lines = (ROOT / 'examples/serve/requirements.txt').read_text(encoding='utf-8').splitlines()
    wanted = [line for line in lines if not line.startswith('#')]
    assert len(wanted) == 4
    assert {*wanted} <= {requirement.partition(';')[0] for requirement in known}
