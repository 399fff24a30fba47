"""Shards that are whole or not there, and the manifest that keeps those of different runs apart."""

import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timm_drnet.bulk.listing import Footer, Listing
from timm_drnet.bulk.manifest import MANIFEST, make_manifest, output_of
from timm_drnet.bulk.shards import ShardFolder
from timm_drnet.data.output_folder import staged_file
from timm_drnet.train.routing_log import install_routing_log

LABELS = ('a', 'b', 'c', 'd', 'e')


def rows(n):
    return pa.table({'n': list(range(n))})


def test_spans():
    shards = ShardFolder(None, 25, 10)
    assert [shards.span(shard) for shard in range(len(shards))] == [(0, 10), (10, 20), (20, 25)]


def test_missing_shards(tmp_path):
    shards = ShardFolder(tmp_path, 25, 10)
    assert shards.missing() == [0, 1, 2]
    shards.write(2, rows(5))
    assert shards.missing() == [0, 1]
    assert [path.name for path in tmp_path.iterdir()] == ['shard-00002.parquet']
    assert pq.read_table(tmp_path).to_pydict() == {'n': [0, 1, 2, 3, 4]}


@pytest.mark.parametrize('damage', ['cut', 'rows'])
def test_damaged_shard_is_no_shard(tmp_path, damage):
    shards = ShardFolder(tmp_path, 25, 10)
    shards.write(1, rows(10 if damage == 'cut' else 9))
    if damage == 'cut':
        file = shards.file(1)
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match='shard-00001.parquet is damaged; delete this file and run again'):
        shards.missing()


@pytest.mark.parametrize('error', [OSError(28, 'Error writing bytes'), KeyboardInterrupt()])
def test_shard_that_fails_half_way_is_not_there(tmp_path, monkeypatch, error):
    def write_half(table, file, **kwargs):
        with open(file, 'wb') as stream:
            stream.write(b'PAR1')
        assert not target.exists()
        raise error

    monkeypatch.setattr(pq, 'write_table', write_half)
    shards = ShardFolder(tmp_path, 25, 10)
    target = shards.file(0)
    with pytest.raises(type(error)) as raised:
        shards.write(0, rows(10))
    assert list(tmp_path.iterdir()) == []
    if isinstance(error, OSError):
        assert str(raised.value) == f"[Errno 28] No space left on device: '{target}'"


def test_shard_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        done.append(('fsync', os.readlink(f'/proc/self/fd/{descriptor}')))
        fsync(descriptor)

    def note_replace(source, target):
        done.append(('replace', str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', note_fsync)
    monkeypatch.setattr(os, 'replace', note_replace)
    ShardFolder(tmp_path, 25, 10).write(0, rows(10))
    temporary = done[0][1]
    assert done == [
        ('fsync', temporary), ('replace', temporary, str(tmp_path / 'shard-00000.parquet')), ('fsync', str(tmp_path))]
    assert os.path.basename(temporary).startswith('.')  # no reader takes it for data


def test_windows(manifest, tmp_path, monkeypatch):
    """It opens no folder, locks none, and syncs no file that was opened to read."""
    fcntl = pytest.importorskip('fcntl')
    real_open, real_fsync = os.open, os.fsync

    def open_file(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(13, 'Permission denied', str(path))
        return real_open(path, *args, **kwargs)

    def fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, 'Bad file descriptor')
        synced.append(descriptor)
        real_fsync(descriptor)

    synced = []
    monkeypatch.delattr(os, 'O_DIRECTORY')
    monkeypatch.setitem(sys.modules, 'fcntl', None)
    monkeypatch.setattr(os, 'open', open_file)
    monkeypatch.setattr(os, 'fsync', fsync)
    with output_of(manifest, tmp_path / 'out') as folder:
        ShardFolder(folder, 2, 10).write(0, rows(2))
    assert len(synced) == 2
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, 'shard-00000.parquet']
    (tmp_path / 'file').write_text('')
    for name in ('nowhere/out', 'file'):
        with pytest.raises(ValueError, match=f'Invalid output .*{name}: '), output_of(manifest, tmp_path / name):
            pass


@pytest.fixture
def manifest(tiny):
    return make_manifest(tiny, Listing(['/a.jpg', '/b.jpg']), LABELS, 1, 10)


def test_manifest_stays(manifest, tmp_path):
    out = tmp_path / 'out'
    with output_of(manifest, out) as folder:
        assert folder == out
        ShardFolder(folder, 2, 10).write(0, rows(2))
    assert json.loads((out / MANIFEST).read_text()) == manifest
    with output_of(manifest, out):
        assert ShardFolder(out, 2, 10).missing() == []
    assert pq.read_table(out).num_rows == 2  # the manifest is not data


def test_leftovers_of_a_killed_run_go(manifest, tmp_path):
    with output_of(manifest, tmp_path / 'out') as folder:
        kept = {path.name for path in folder.iterdir()}
        with staged_file(folder / 'shard-00000.parquet') as file:
            file.write_bytes(b'half')
            (folder / '.timm-drnet-0123abcd.parquet').write_bytes(b'half')
            (folder / '.timm-drnet-4567cdef').mkdir()  # of an engine's export
            (folder / '.timm-drnet-4567cdef' / 'predictor.onnx').write_bytes(b'half')
    with output_of(manifest, tmp_path / 'out') as folder:
        assert {path.name for path in folder.iterdir()} == kept | {'shard-00000.parquet'}


@pytest.fixture
def like_tiny(tiny, make_tiny):
    """Function that creates a model with the weights of ``tiny`` and other arguments."""
    def like_tiny(**kwargs):
        model = make_tiny(**kwargs).eval()
        model.load_state_dict(tiny.state_dict())
        return model

    return like_tiny


TWO = Listing(['/a.jpg', '/b.jpg'])
TABLE = Listing(['/a.parquet'], {'/a.parquet': Footer(2, 10)})
ID = pa.schema([('id', pa.int64())])


@pytest.mark.parametrize(('first', 'second', 'told'), [
    ({}, {'topk': 3}, 'topk 1, now 3'),
    ({}, {'reducing_gap': None}, 'reducing gap 2.5, now None'),
    ({}, {'shard_size': 11}, 'shard size 10, now 11'),
    ({}, {'listing': Listing(['/a.jpg', '/b.jpg', '/c.jpg'])}, 'number of images 2, now 3; another list of'),
    ({}, {'listing': Listing(['/a.jpg', '/c.jpg'])}, 'another list of input files'),
    ({'listing': TABLE}, {'listing': Listing(TABLE.paths, {'/a.parquet': Footer(2, 11)})}, 'another list of'),
    ({}, {'labels': LABELS[::-1]}, 'other labels'),
    ({'listing': TABLE}, {'listing': TABLE, 'image_column': 'picture'}, 'image column image, now picture'),
    ({'carried': ID}, {}, 'columns of the input: id int64, now None'),
    ({'carried': ID}, {'carried': pa.schema([('id', pa.string())])}, 'columns of the input: id int64, now string'),
    ({}, {'version': '99.0'}, r'version of timm-drnet 0\.\S+, now 99\.0'),
    ({}, {'format': 99}, 'format of the output 2, now 99'),
    ({}, {'shake': 1}, 'other model weights'),
    ({}, {'model': {'act_layer': 'gelu'}}, 'another model architecture'),
    ({}, {'model': {'resolutions': (64, 48, 40)}}, r'model settings: resolutions \[64, 48, 32\], now \[64, 48, 40\]'),
    ({}, {'model': {'predictor_size': 40}}, 'model settings: predictor_size 32, now 40'),
    ({}, {'model': {'stage': 'pretrain'}}, 'model settings: stage joint, now pretrain'),
    ({'model': {'cost': [3, 2, 1, 1], 'cost_weight': .5}}, {'model': {'cost': [4, 2, 1, 1], 'cost_weight': .5}},
     r'model settings: cost \[3\.0, 2\.0, 1\.0, 1\.0\], now \[4\.0, 2\.0, 1\.0, 1\.0\]'),
    ({'model': {'cost_weight': .25}}, {'model': {'cost_weight': .5}}, 'model settings: cost_weight 0.25, now 0.5'),
])
def test_other_arguments_are_refused_by_name(
        tiny, like_tiny, shake, tmp_path, monkeypatch, first, second, told):
    def manifest(
            listing=TWO, labels=LABELS, topk=1, shard_size=10, image_column='image', carried=None, model=None,
            version='', **changed):
        net = like_tiny(**(model or {}))
        if 'shake' in changed:
            shake(net, seed=changed.pop('shake'))
        if version:
            monkeypatch.setattr('timm_drnet.bulk.manifest.__version__', version)
        return make_manifest(net, listing, labels, topk, shard_size, image_column, carried) | changed

    with output_of(manifest(**first), tmp_path / 'out'):
        pass
    with output_of(manifest(**first), tmp_path / 'out'):  # the same again
        pass
    with pytest.raises(ValueError, match=f'arguments: {told}.*Give'), output_of(manifest(**second), tmp_path / 'out'):
        pass


def test_what_rows_do_not_depend_on_may_change(tiny, like_tiny, tmp_path):
    install_routing_log(tiny)  # as training does: the network is the same
    with output_of(make_manifest(tiny, TWO, LABELS, 1, 10, 'image'), tmp_path / 'out'):
        pass
    other = like_tiny(alpha=2.0, eta=1.0, tau=2.0, joint_resolutions='all', cost=[3, 2, 1, 1])
    with output_of(make_manifest(other, TWO, LABELS, 1, 10, 'picture'), tmp_path / 'out'):
        pass


def test_two_runs_at_once_are_refused(manifest, tmp_path):
    pytest.importorskip('fcntl')
    with (
            output_of(manifest, tmp_path / 'out'),
            pytest.raises(ValueError, match='another run is writing there'),
            output_of(manifest, tmp_path / 'out')):
        pass
    with output_of(manifest, tmp_path / 'out'):
        pass


@pytest.mark.parametrize(('name', 'told'), [
    ('nowhere/out', 'No such file or directory; name a folder in one that exists'),
    ('file', 'exists'),
    ('full', 'not empty, and not the output of an earlier run'),
    ('damaged', f'{MANIFEST} in it is damaged'),
])
def test_bad_outputs(manifest, tmp_path, name, told):
    (tmp_path / 'file').write_text('')
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'precious.txt').write_text('mine')
    (tmp_path / 'damaged').mkdir()
    (tmp_path / 'damaged' / MANIFEST).write_text('{')
    refused = pytest.raises(ValueError, match=f'Invalid output {tmp_path / name}: .*{told}')
    with refused, output_of(manifest, tmp_path / name):
        pass
    assert (tmp_path / 'full' / 'precious.txt').read_text() == 'mine'
