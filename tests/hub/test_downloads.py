"""Downloads against a server on loopback: whole, damaged on the way, and damaged in the cache."""

import hashlib

import pytest
from hub_server import Fault, HubServer

from timm_drnet.hub.downloads import download

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
