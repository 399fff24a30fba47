"""``timm-drnet classify`` from its arguments to its output, and what an interruption leaves."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from processes import processes_below
from safetensors.torch import save_file

from timm_drnet.bulk.report import BulkReport
from timm_drnet.bulk.run import classify_bulk
from timm_drnet.cli import main
from timm_drnet.cli.parsers import build_parser
from timm_drnet.evaluate.prediction import predict_images

PHOTOS = sorted((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg'))
MODEL_KWARGS = {'backbone': 'test_resnet', 'resolutions': (64, 48, 32), 'predictor': 'inverted_residual'}
IMAGES = 600
SHARD_SIZE = 20


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model('drnet', num_classes=5, **MODEL_KWARGS)
    path = tmp_path_factory.mktemp('weights') / 'model.safetensors'
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def arguments(checkpoint):
    """The command line for inputs, an output and further arguments."""
    def arguments(inputs, output, *others):
        return [
            'classify', 'drnet', '--input', str(inputs), '--output', str(output), '--num-classes', '5',
            '--checkpoint', str(checkpoint), *map(str, others),
            '--model-kwargs', *(f'{key}={value}'.replace(' ', '') for key, value in MODEL_KWARGS.items())]

    return arguments


@pytest.fixture
def photographs(tmp_path):
    """Parts of the example photographs, one of them damaged."""
    folder = tmp_path / 'photographs'
    folder.mkdir()
    originals = [Image.open(path).convert('RGB') for path in PHOTOS]
    for n in range(IMAGES):
        original, left = originals[n % len(originals)], n // len(originals) % 40
        top = n // len(originals) // 40
        original.crop((left, top, left + 72, top + 72)).save(folder / f'{n:04d}.jpg')
    (folder / '0567.jpg').write_bytes(b'no image')
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_interrupted_run_is_completed_by_the_next(ray_here, arguments, checkpoint, photographs, tmp_path, capsys):
    out = tmp_path / 'out'
    command = arguments(photographs, out, '--shard-size', SHARD_SIZE, '--batch-size', 4, '--workers', 1, '--json')
    # A shell that starts pytest in the background lets it, and all below it, ignore SIGINT.
    program = (
        'import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);'
        ' from timm_drnet.cli import main; sys.exit(main(sys.argv[1:]))')
    process = subprocess.Popen(
        [sys.executable, '-c', program, *command], start_new_session=True, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE)
    try:
        while len(list(out.glob('shard-*.parquet'))) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        rays = processes_below(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        stdout, stderr = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (130, '')
    # On a stderr that is no terminal there are our lines, and nothing of Ray's.
    assert 'classify: 0 of 600 images, 0 of 30 shards\n' in stderr
    assert not re.search(r'\bray\b|\braylet\b|\.cc:|Traceback', stderr), stderr

    # Ray is gone, and what is there is whole.
    assert len(rays) > 3
    deadline = time.monotonic() + 30
    while alive := {pid for pid in rays if (Path('/proc') / str(pid)).exists()}:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)
    done = sorted(out.glob('*.parquet'))
    assert 2 <= len(done) < IMAGES // SHARD_SIZE
    assert all(pq.read_table(file).num_rows == SHARD_SIZE for file in done)
    assert {path.name for path in out.iterdir()} == {'_manifest.json', *(file.name for file in done)}
    kept = {file: file.stat().st_mtime_ns for file in done}

    code = main(command)
    stdout, stderr = capsys.readouterr()
    report = json.loads(stdout)
    assert code == 1  # there is an unreadable one
    assert f'skipped {len(done)} of {IMAGES // SHARD_SIZE} shards' in stderr
    assert f'{photographs / "0567.jpg"}: not an image' in stderr
    assert '1 of 600 images are unreadable' in stderr
    assert {file: file.stat().st_mtime_ns for file in done} == kept
    assert (report['images'], report['unreadable'], report['skipped_shards']) == (IMAGES, 1, len(done))
    assert report['new_images'] == IMAGES - SHARD_SIZE * len(done)

    rows = pq.read_table(out).to_pylist()
    assert [row['path'] for row in rows] == [str(photographs / f'{n:04d}.jpg') for n in range(IMAGES)]
    assert [row['error'] for row in rows if row['error']] == ['not an image of a format that Pillow can read']
    model = timm.create_model('drnet', num_classes=5, checkpoint_path=str(checkpoint), **MODEL_KWARGS).eval()
    some = [n for n in range(0, IMAGES, 20) if n != 567]
    expected = predict_images(model, [rows[n]['path'] for n in some]).images
    for n, image in zip(some, expected, strict=True):
        assert rows[n]['resolution'] == image.resolution
        assert rows[n]['probability'] == pytest.approx(image.probabilities[0], abs=1e-4)


def test_killed_run_loses_seconds_and_many_images_make_few_files(arguments, capsys):
    size = build_parser().parse_args(arguments('photos', 'out')).shard_size
    assert size == inspect.signature(classify_bulk).parameters['shard_size'].default
    assert size / 50 <= 20  # s at 50 images a second
    assert 1_000_000 / size <= 1000
    assert main(['classify', '--help']) == 0
    assert 'a run that is killed loses' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize(('number', 'lines', 'told'), [
    (1, ['1 image in 1 shard, out', '1 image classified now in 3.0 s'],
     ['1 of 1 shard: already', '1 worker that died']),
    (2000, ['2,000 images in 2,000 shards, out', '2,000 images classified now in 3.0 s'],
     ['2,000 of 2,000 shards: already', '2,000 workers that died']),
])
def test_one_and_many(arguments, tmp_path, capsys, monkeypatch, number, lines, told):
    report = BulkReport(Path('out'), number, 0, number, {64: number}, 1.0, number, number, 3.0, 1.0, number)
    monkeypatch.setattr('timm_drnet.cli.classify.classify_bulk', lambda *args, **kwargs: report)
    assert main(arguments(PHOTOS[0], tmp_path / 'out')) == 0
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if lines[0] in line or line.startswith(lines[1])] == [
        *out.splitlines()[:1], *out.splitlines()[2:]]
    assert all(text in err for text in told), err


@pytest.mark.parametrize(('others', 'told'), [
    (['--labels', '{tmp}/two.txt'], '2 lines for the 5 classes'),
    (['--input', '{tmp}/nowhere'], '{tmp}/nowhere: no such file or folder'),
    (['--input', '{tmp}/table.parquet'], "no column 'image'; name the column of images with --image-column"),
    (['--output', '{tmp}'], 'Invalid output {tmp}: this folder is not empty'),
    (['--output', '{photos}/out'], 'lies in the input'),
    (['--output', 's3://bucket/out'], 's3://bucket/out: s3:// needs another package'),
    (['--output', 'memory://bucket/out'], 'shards are written to a folder on this machine; name one'),
    (['--input', 'memory://bucket/photos'], 'workers cannot see the memory of another process'),
    (['--input', 'gs://bucket/photos'], 'gs:// needs another package (Please install gcsfs to access Google Storage)'),
    (['--columns', 'id'], "no input has 'id' (--columns)"),
    (['--input', '{tmp}/table.parquet', '--image-column', 'picture'],
     "table.parquet: the column 'label' is called as one of the output; rename it"),
])
def test_bad_input_is_one_clear_line(arguments, tmp_path, capsys, others, told):
    (tmp_path / 'two.txt').write_text('a\nb\n')
    pq.write_table(pa.table({'picture': [b''], 'label': [1]}), tmp_path / 'table.parquet')
    names = {'tmp': tmp_path, 'photos': PHOTOS[0].parent}
    code = main(arguments(PHOTOS[0].parent, tmp_path / 'out', *(other.format(**names) for other in others)))
    out, err = capsys.readouterr()
    assert (code, out) == (2, '')
    assert err.startswith('timm-drnet classify: ')
    assert told.format(**names) in err
    assert len(err.splitlines()) == 1


def test_without_ray(arguments, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'ray']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'ray', None)
    assert main(arguments(PHOTOS[0].parent, tmp_path / 'out')) == 2
    err = capsys.readouterr().err
    assert 'pip install "timm-drnet[ray]"' in err
    assert len(err.splitlines()) == 1
