"""Downloads against a server on loopback: whole, damaged on the way, and damaged in the cache."""

import hashlib

import pytest
import torch
from hub_server import Fault, HubServer
from safetensors.torch import save

from timm_drnet.hub import downloads
from timm_drnet.hub.downloads import check_hub_weights, download

CONTENT = bytes(range(256)) * 4096  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub():
    """Server with one ordinary file."""
    with HubServer() as hub:
        hub.plain['weights.ckpt'] = CONTENT
        yield hub


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Folder where timm keeps what it downloads."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    return tmp_path / 'hub' / 'checkpoints'


def test_file_is_downloaded_once_into_timm_s_cache(hub, cache):
    path = download(hub.plain_url('weights.ckpt'), SHA256)
    assert path == cache / 'weights.ckpt'
    assert path.read_bytes() == CONTENT
    assert download(hub.plain_url('weights.ckpt'), SHA256) == path
    assert [request.method for request in hub.requests] == ['GET']


def test_cache_can_be_elsewhere(hub, tmp_path):
    path = download(hub.plain_url('weights.ckpt'), SHA256, tmp_path / 'new' / 'folder')
    assert path == tmp_path / 'new' / 'folder' / 'weights.ckpt'
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize('content', [CONTENT[:-1], b'x' + CONTENT[1:], b''])
def test_damaged_file_in_the_cache_is_replaced(hub, cache, caplog, content):
    cache.mkdir(parents=True)
    (cache / 'weights.ckpt').write_bytes(content)
    assert download(hub.plain_url('weights.ckpt'), SHA256).read_bytes() == CONTENT
    assert 'weights.ckpt is damaged: downloading it again' in caplog.text


@pytest.mark.parametrize('fault', [
    Fault(cut_after=300_000), Fault(cut_after=300_000, reset=True), Fault(cut_after=0),
    Fault(body=b'x' + CONTENT[1:]), Fault(body=CONTENT + b'x'), Fault(body=b'')],
    ids=['closed', 'reset', 'closed at once', 'other', 'longer', 'empty'])
@pytest.mark.parametrize('cached', [None, b'damaged'])
def test_nothing_is_kept_of_a_damaged_download(hub, cache, fault, cached):
    if cached:
        cache.mkdir(parents=True)
        (cache / 'weights.ckpt').write_bytes(cached)
    hub.faults['files/weights.ckpt'] = fault
    with pytest.raises(RuntimeError, match=r'Could not download http.*weights\.ckpt.*Nothing was kept. Try again'):
        download(hub.plain_url('weights.ckpt'), SHA256)
    assert list(cache.iterdir()) == []
    hub.faults.clear()
    assert download(hub.plain_url('weights.ckpt'), SHA256).read_bytes() == CONTENT


def test_missing_file_and_absent_server(hub, cache):
    with pytest.raises(RuntimeError, match='Could not download .*other.ckpt.*404.*other.ckpt'):
        download(hub.plain_url('other.ckpt'), SHA256)
    url = hub.plain_url('weights.ckpt')
    hub.__exit__()
    with pytest.raises(RuntimeError, match='Could not download .*refused.*get the file in another way and put it at'):
        download(url, SHA256)
    assert list(cache.iterdir()) == []


WEIGHTS = save({'weight': torch.arange(4.0)})
NAME = 'model.safetensors'


@pytest.fixture
def cached(hub, tmp_path, monkeypatch):
    """Where the Hub's client says that the weights of a repository are, and the sha256 that the Hub announces."""
    commit = hub.add('org/name', {NAME: WEIGHTS})
    pointer = tmp_path / 'snapshots' / commit / NAME
    pointer.parent.mkdir(parents=True)
    monkeypatch.setattr(downloads, 'hf_hub_download', lambda *args, **kwargs: str(pointer))
    monkeypatch.setattr(
        downloads, 'hf_hub_url', lambda repo_id, name, revision: f'{hub.url}/{repo_id}/resolve/{revision}/{name}')
    return pointer, hub.files('org/name')[NAME].sha256


def test_cache_that_shares_files_between_repositories(cached):
    """There the file that is named by the sha256 is itself a link, to one that is named by another hash."""
    pointer, sha256 = cached
    store, blob = pointer.parents[2] / 'blobs' / 'ab' / f'ab{"0" * 62}', pointer.parents[2] / 'own' / sha256
    for path in (store, blob):
        path.parent.mkdir(parents=True)
    store.write_bytes(WEIGHTS)
    blob.symlink_to(store)
    pointer.symlink_to(blob)
    check_hub_weights('org/name')
    store.write_bytes(WEIGHTS[:-1] + b'?')
    with pytest.raises(RuntimeError, match=f'{sha256} was expected.*Nothing was kept'):
        check_hub_weights('org/name')
    assert not any(path.is_symlink() or path.exists() for path in (pointer, blob, store))


def test_cache_without_links(cached, caplog, monkeypatch):
    pointer, sha256 = cached
    pointer.write_bytes(WEIGHTS)
    check_hub_weights('org/name')
    pointer.write_bytes(WEIGHTS[:-1] + b'?')
    with pytest.raises(RuntimeError, match=f'{sha256} was expected'):
        check_hub_weights('org/name')
    assert not pointer.exists()
    pointer.write_bytes(WEIGHTS)
    assert caplog.text == ''
    monkeypatch.setattr(downloads, 'hf_hub_url', lambda *args, **kwargs: 'http://127.0.0.1:9/')
    check_hub_weights('org/name')
    assert 'could not be checked against the Hub' in caplog.text


def test_other_formats_are_not_looked_for():
    with pytest.raises(RuntimeError, match=r'weights pytorch_model\.bin of org/name are not loaded'):
        check_hub_weights('org/name', 'pytorch_model.bin')
