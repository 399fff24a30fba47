"""Bulk runs on Ray, against `predict_images`, and in several sittings."""

import copy
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import timm_drnet
from timm_drnet.bulk.run import classify_bulk
from timm_drnet.data.reading import image_loader
from timm_drnet.deploy.onnx_runner import OnnxDRNet
from timm_drnet.evaluate.prediction import predict_images

PHOTOS = sorted((Path(__file__).parents[2] / 'examples' / 'photos').glob('*.jpg'))
NO_IMAGE = 'not an image of a format that Pillow can read'
LABELS = ('a', 'b', 'c', 'd', 'e')


@pytest.fixture(scope='module')
def model(make_spread):
    """A model whose choices and answers differ between the photographs."""
    load = image_loader(timm_drnet.create_drnet('test_resnet', resolutions=(64, 48, 32)))
    return make_spread(torch.stack([load(path) for path in PHOTOS]), 5)


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """Photographs as files, with a damaged one between them, and again as rows, with a damaged and an empty one."""
    folder = tmp_path_factory.mktemp('inputs')
    (folder / 'files').mkdir()
    for path in PHOTOS:
        (folder / 'files' / path.name).write_bytes(path.read_bytes())
    (folder / 'files' / 'g_is_damaged.jpg').write_bytes(PHOTOS[0].read_bytes()[:50])
    images = [path.read_bytes() for path in PHOTOS]
    rows = [{'bytes': image, 'path': None} for image in [*images[:3], b'no image', *images[3:], None]]
    table = pa.table({
        'id': [f'photo {n}' for n in range(len(rows))],
        'picture': pa.array(rows, pa.struct({'bytes': pa.binary(), 'path': pa.string()}))})
    pq.write_table(table, folder / 'rows.parquet', row_group_size=4)
    return [folder / 'files', folder / 'rows.parquet']


@pytest.fixture(scope='module')
def out(model, inputs, ray_here, tmp_path_factory):
    """The output of a run, with decoders of their own, and its report."""
    out = tmp_path_factory.mktemp('run') / 'out'
    report = classify_bulk(
        model, [inputs[0].as_uri(), inputs[1]], out.as_uri(), LABELS, topk=2, image_column='picture', batch_size=2,
        shard_size=10, workers=1, decoders=1, reducing_gap=1)
    return out, report


@pytest.fixture(scope='module')
def expected(model):
    return predict_images(model, PHOTOS, LABELS, topk=2, reducing_gap=1)


def test_rows_are_those_of_predict_images(out, inputs, expected):
    folder, _ = out
    rows = pq.read_table(folder).to_pylist()
    files = sorted(str(path) for path in inputs[0].iterdir())
    assert [(row['path'], row['row']) for row in rows] == [
        *((path, None) for path in files), *((str(inputs[1]), n) for n in range(14))]
    assert [row['id'] for row in rows] == [None] * len(files) + [f'photo {n}' for n in range(14)]
    assert sum(count > 0 for count in expected.counts.values()) > 1  # or the routing would not have been tested
    damaged = [row for row in rows if row['error'] is not None]
    assert [(row['path'], row['row'], row['error']) for row in damaged] == [
        (str(inputs[0] / 'g_is_damaged.jpg'), None, damaged[0]['error']), (str(inputs[1]), 3, NO_IMAGE),
        (str(inputs[1]), 13, 'the row holds no image')]
    for row in damaged:
        assert {name for name, value in row.items() if value is not None} <= {'path', 'row', 'id', 'error'}
    for row, image in zip([row for row in rows if row['error'] is None], expected.images * 2, strict=True):
        assert (row['label'], row['top_labels']) == (image.labels[0], list(image.labels))
        assert [LABELS[i] for i in row['top_class_indices']] == row['top_labels']
        assert row['class_index'] == row['top_class_indices'][0]
        assert row['top_probabilities'] == pytest.approx(image.probabilities, abs=1e-4)
        assert row['probability'] == row['top_probabilities'][0]
        assert row['resolution'] == image.resolution
        assert row['gflops'] == pytest.approx(image.flops / 1e9)


@pytest.mark.slow
def test_engine_is_kept_for_the_run_that_completes_it(model, inputs, ray_here, tmp_path):
    arguments = {'labels': LABELS, 'shard_size': 10, 'workers': 1, 'engine': 'openvino-int8'}
    report = classify_bulk(model, inputs[:1], tmp_path / 'out', **arguments)
    assert report.new_images == 13
    runner = OnnxDRNet(tmp_path / 'out' / '_engine', runtime='openvino')
    assert runner.manifest['quantization'] == {'images': 12, 'held_out': 0}  # all that are readable
    found = runner.classify(PHOTOS)
    rows = [row for row in pq.read_table(tmp_path / 'out').to_pylist() if row['error'] is None]
    assert [row['resolution'] for row in rows] == [one.resolution for one in found]
    expected = [one.probabilities[0] for one in found]
    assert [row['probability'] for row in rows] == pytest.approx(expected, abs=0.05)  # other batches round otherwise
    (tmp_path / 'out' / 'shard-00001.parquet').unlink()
    before = (tmp_path / 'out' / '_engine' / 'manifest.json').stat()
    assert classify_bulk(model, inputs[:1], tmp_path / 'out', **arguments).new_images == 3
    assert (tmp_path / 'out' / '_engine' / 'manifest.json').stat() == before
    with pytest.raises(ValueError, match='other precision'):
        classify_bulk(model, inputs[:1], tmp_path / 'out', **{**arguments, 'engine': 'deployed'})
    for changes, told in (({'engine': 'tensorrt'}, "Invalid engine 'tensorrt': use one of 'deployed', 'onnxruntime'"),
                          ({'num_gpus': 1}, 'Invalid num_gpus 1: the engine openvino-int8 runs on CPUs')):
        with pytest.raises(ValueError, match=told):
            classify_bulk(model, inputs[:1], tmp_path / 'out', **{**arguments, **changes})


def test_report(out, inputs, expected):
    folder, report = out
    assert (report.folder, report.images, report.new_images, report.unreadable) == (folder, 27, 27, 3)
    assert (report.shards, report.skipped_shards, report.replaced_workers) == (3, 0, 0)
    assert report.counts == {resolution: 2 * count for resolution, count in expected.counts.items()}
    assert 0 < report.working_seconds < report.seconds
    assert report.gflops == pytest.approx(2 * expected.flops / 1e9)
    assert [(path, row) for path, row, _ in report.errors()] == [
        (str(inputs[0] / 'g_is_damaged.jpg'), None), (str(inputs[1]), 3), (str(inputs[1]), 13)]


def test_shards_have_their_size_and_one_schema(out):
    folder, _ = out
    files = sorted(folder.glob('*.parquet'))
    assert [file.name for file in files] == ['shard-00000.parquet', 'shard-00001.parquet', 'shard-00002.parquet']
    assert [pq.read_metadata(file).num_rows for file in files] == [10, 10, 7]
    assert len({str(pq.read_schema(file)) for file in files}) == 1


def test_later_run_makes_what_is_missing_and_nothing_else(model, inputs, out, monkeypatch):
    folder, first = out
    arguments = {'topk': 2, 'image_column': 'picture', 'shard_size': 10, 'reducing_gap': 1}
    before = pq.read_table(folder / 'shard-00001.parquet')
    (folder / 'shard-00001.parquet').unlink()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob('*.parquet')}
    assert len(kept) == 2
    # Workers that decode for themselves, larger batches: nothing of that changes the result.
    report = classify_bulk(model, inputs, folder, LABELS, batch_size=7, workers=1, **arguments)
    assert (report.skipped_shards, report.new_images, report.images, report.unreadable) == (2, 10, 27, 3)
    assert report.counts == first.counts
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    after = pq.read_table(folder / 'shard-00001.parquet')
    for name in before.column_names:
        if 'probabilit' not in name:
            assert after[name].equals(before[name])
    for row, again in zip(before.to_pylist(), after.to_pylist(), strict=True):
        assert again['probability'] == pytest.approx(row['probability'], abs=1e-4)
    # A third has nothing to do, and no need of Ray.
    monkeypatch.setattr('timm_drnet.bulk.run.ray_cluster', None)
    report = classify_bulk(model, inputs, folder, LABELS, **arguments)
    assert (report.skipped_shards, report.new_images, report.images) == (3, 0, 27)


def test_error_in_a_worker_is_told_as_it_is(model, inputs, ray_here, tmp_path):
    here = os.getpid()

    class Damaged(type(model)):
        @property
        def resolutions(self):
            if os.getpid() != here:
                raise ArithmeticError('what it says\nand more')
            return super().resolutions

    damaged = copy.deepcopy(model)
    damaged.__class__ = Damaged
    with pytest.raises(RuntimeError) as error:
        classify_bulk(damaged, [inputs[0]], tmp_path / 'out', workers=1)
    assert str(error.value) == (
        'The workers failed (a worker could not start: ArithmeticError: what it says). The shards that were made'
        ' remain.')


@pytest.mark.parametrize(('arguments', 'told'), [
    ({'topk': 0}, 'Invalid topk 0'),
    ({'batch_size': 0}, 'Invalid batch_size 0'),
    ({'shard_size': 0}, 'Invalid shard_size 0'),
    ({'workers': 0}, 'Invalid workers 0'),
    ({'reducing_gap': 0.5}, r'Invalid reducing_gap 0\.5'),
    ({'labels': ['a']}, '1 labels for a model of 5 classes'),
    ({'output': PHOTOS[0].parent / 'out'}, 'it lies in the input .*; name a folder outside of it'),
    ({'output': 'memory://bucket/out'}, 'written to a folder on this machine; name one'),
    ({'columns': ['id']}, r"no input has 'id' \(--columns\); there are none beside the images"),
])
def test_bad_arguments(model, tmp_path, arguments, told):
    with pytest.raises(ValueError, match=told):
        classify_bulk(model, [PHOTOS[0].parent], **{'output': tmp_path / 'out', **arguments})
    assert not (tmp_path / 'out').exists()


def test_model_that_cannot_be_used_is_noticed_before_the_work(make_tiny, tmp_path):
    for model, told in (
            (make_tiny(num_classes=0), 'no classifier'), (make_tiny(in_chans=2), 'images of 2 channels')):
        with pytest.raises(ValueError, match=told):
            classify_bulk(model, PHOTOS, tmp_path / 'out')


def test_ray_is_not_needed_until_it_is_used(model, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'ray']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=r'pip install "timm-drnet\[ray\]"'):
        classify_bulk(model, PHOTOS, tmp_path / 'out')
