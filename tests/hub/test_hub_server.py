"""The tests' server against the real huggingface_hub in processes of its own: what goes up comes down the same."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hub_server import READ_TOKEN, WRITE_TOKEN, Fault, HubServer

LARGE = 'weights/model.safetensors'
PUSH = 'result = api.upload_folder(repo_id="org/m", folder_path=sys.argv[1]).oid'
PULL = 'result = hf_hub_download("org/m", "model.safetensors")'


@pytest.fixture
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path):
    """A folder with a text, an empty file and, deeper, some megabytes that cannot be compressed."""
    folder = tmp_path / 'folder'
    (folder / 'weights').mkdir(parents=True)
    (folder / 'config.json').write_text('{}')
    (folder / 'empty.txt').touch()
    (folder / LARGE).write_bytes(os.urandom(3_000_001))
    return folder


@pytest.fixture
def run(hub, tmp_path):
    """Function that runs code in a fresh process and returns its `result`, or the names of its error's types."""

    def run(code, *argv, home='home', token=WRITE_TOKEN, **env):
        script = (
            'import json, sys, time\n'
            'time.sleep = lambda seconds: None  # the client waits between its attempts\n'
            'from huggingface_hub import HfApi, hf_hub_download, snapshot_download\n'
            'api, result = HfApi(), None\n'
            'try:\n'
            f'    {code}\n'
            'except Exception as error:\n'
            '    result = [c.__name__ for c in type(error).__mro__] + [str(error)]\n'
            'print(json.dumps(result))')
        process = subprocess.run(
            [sys.executable, '-c', script, *map(str, argv)], env=hub.env(tmp_path / home, token, **env),
            capture_output=True, text=True, timeout=60, check=True)
        return json.loads(process.stdout.splitlines()[-1])

    return run


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


def cached(home):
    """Contents of all files of a client's cache, unfinished ones too."""
    return [p.read_bytes() for p in (home / 'hub').glob('models--*/blobs/*')]


def asked(hub):
    return [(request.method, request.path.split('?')[0]) for request in hub.requests]


def test_folder_comes_back_bit_for_bit(hub, run, folder, tmp_path):
    assert run('api.create_repo("org/m"); ' + PUSH, folder) == hub.repositories['org/m'].resolve('main').oid
    fetched = run('result = snapshot_download("org/m")', home='another')
    assert {**contents(folder), '.gitattributes': hub.files('org/m')['.gitattributes'].content} == contents(fetched)


def test_hashes_are_those_of_git_and_of_the_content(hub, run, folder):
    run('api.create_repo("org/m"); ' + PUSH, folder)
    files = hub.files('org/m')
    assert files['config.json'].etag == '9e26dfeeb6e641a33dae4961196235bdb965b21b'  # git hash-object, of {}
    assert files['empty.txt'].etag == 'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    content = (folder / LARGE).read_bytes()
    assert files[LARGE].etag == hashlib.sha256(content).hexdigest()
    listed = run('result = [[f.path, f.size, f.blob_id, f.lfs and f.lfs.sha256] for f in'
                 f' api.get_paths_info("org/m", ["config.json", "{LARGE}"])]')
    assert listed[0] == ['config.json', 2, files['config.json'].etag, None]
    assert listed[1] == [LARGE, 3_000_001, files[LARGE].blob_id, files[LARGE].sha256]
    pointer = f'version https://git-lfs.github.com/spec/v1\noid sha256:{files[LARGE].sha256}\nsize 3000001\n'.encode()
    assert files[LARGE].blob_id == hashlib.sha1(b'blob %d\0' % len(pointer) + pointer).hexdigest()


def test_only_what_changed_is_committed(hub, run, folder):
    first = run('api.create_repo("org/m", exist_ok=True); ' + PUSH, folder)
    assert [method for method, path in asked(hub) if path.startswith('/lfs/')] == ['PUT']
    hub.requests.clear()
    assert run('api.create_repo("org/m", exist_ok=True); ' + PUSH, folder) == first
    (folder / 'config.json').write_text('{"a": 1}')
    second = run(PUSH, folder)
    assert not [path for _, path in asked(hub) if path.startswith('/lfs/')]
    assert [path for _, path in asked(hub)].count('/api/models/org/m/commit/main') == 1
    assert hub.repositories['org/m'].commits[second].parent == first
    assert hub.files('org/m', first)['config.json'].content == b'{}'
    assert hub.files('org/m', second)['config.json'].content == b'{"a": 1}'


def test_revisions(hub, run, folder):
    first = hub.add('org/m', {'a.txt': b'one', 'gone.txt': b''}, tag='v1')
    hub.add('org/m', {'b.txt': b''}, branch='other')
    second = hub.add('org/m', {'a.txt': b'two', 'gone.txt': None}, branch='other')
    answer = run(
        'info = api.upload_file(path_or_fileobj=b"three", path_in_repo="a.txt", repo_id="org/m", create_pr=True);'
        ' api.create_branch("org/m", branch="late", revision="v1");'
        ' api.create_tag("org/m", tag="v2", revision="other"); result = [info.pr_url, info.pr_revision, info.oid]')
    assert answer[:2] == [f'{hub.url}/org/m/discussions/1', 'refs/pr/1']
    texts = {'main': 'one', 'v1': 'one', 'late': 'one', first: 'one', 'other': 'two', 'v2': 'two', second: 'two',
             'refs/pr/1': 'three', answer[2]: 'three'}
    assert run('result = {r: open(hf_hub_download("org/m", "a.txt", revision=r)).read() for r in sys.argv[1:]}',
               *texts) == texts
    assert run('result = [api.list_repo_files("org/m", revision=r) for r in ("v1", "other")]') == [
        ['.gitattributes', 'a.txt', 'gone.txt'], ['.gitattributes', 'a.txt', 'b.txt']]
    refs = run('refs = api.list_repo_refs("org/m", include_pull_requests=True);'
               ' result = [sorted(r.name for r in kind) for kind in (refs.branches, refs.tags, refs.pull_requests)]')
    assert refs == [['late', 'main', 'other'], ['v1', 'v2'], ['1']]


def test_deleted_file_is_gone(hub, run):
    hub.add('org/m', {'a.txt': b'one', 'b.txt': b'two'})
    run('api.delete_file("a.txt", "org/m")')
    assert sorted(hub.files('org/m')) == ['.gitattributes', 'b.txt']


@pytest.mark.parametrize(('code', 'token', 'types'), [
    ('api.model_info("org/none")', WRITE_TOKEN, ['RepositoryNotFoundError']),
    ('api.model_info("org/none")', None, ['RepositoryNotFoundError']),
    ('hf_hub_download("org/none", "a.txt")', None, ['RepositoryNotFoundError']),
    ('hf_hub_download("org/m", "a.txt", revision="none")', None, ['RevisionNotFoundError']),
    ('hf_hub_download("org/m", "none.txt")', None, ['RemoteEntryNotFoundError']),
    ('hf_hub_download("org/m", "a.txt")', 'hf_wrong', ['HfHubHTTPError', '401', 'Invalid credentials']),
    ('hf_hub_download("org/secret", "a.txt")', None, ['RepositoryNotFoundError']),
    ('hf_hub_download("org/secret", "a.txt")', 'hf_wrong', ['HfHubHTTPError', '401', 'Invalid credentials']),
    ('api.whoami()', 'hf_wrong', ['HfHubHTTPError', 'Invalid user token']),
    ('api.create_repo("org/new")', None, ['HfHubHTTPError', '401']),
    ('api.create_repo("org/new")', 'hf_wrong', ['HfHubHTTPError', '401']),
    ('api.create_repo("org/new")', READ_TOKEN, ['HfHubHTTPError', '403', 'write access']),
    ('api.create_repo("org/m")', WRITE_TOKEN, ['HfHubHTTPError', '409', 'already created']),
    ('api.delete_file("a.txt", "org/m")', READ_TOKEN, ['HfHubHTTPError', '403']),
    ('api.delete_file("none.txt", "org/m")', WRITE_TOKEN, ['RemoteEntryNotFoundError']),
    ('api.create_branch("org/m", branch="main")', WRITE_TOKEN, ['HfHubHTTPError', '409']),
])
def test_refusals_are_typed(hub, run, code, token, types):
    hub.add('org/m', {'a.txt': b'one'})
    hub.add('org/secret', {'a.txt': b'one'}, private=True)
    before = hub.files('org/m')
    names = run(code, token=token)
    assert types[0] in names
    assert all(word in names[-1] for word in types[1:])
    assert hub.files('org/m') == before
    assert sorted(hub.repositories) == ['org/m', 'org/secret']


def test_private_repository_opens_with_a_token(hub, run):
    run('api.create_repo("org/m", private=True); '
        'api.upload_file(path_or_fileobj=b"one", path_in_repo="a.txt", repo_id="org/m")')
    assert 'RepositoryNotFoundError' in run('hf_hub_download("org/m", "a.txt")', token=None)
    assert run('result = open(hf_hub_download("org/m", "a.txt")).read()', token=READ_TOKEN) == 'one'
    assert run('result = api.whoami()["auth"]["accessToken"]["role"]', token=READ_TOKEN) == 'read'


def test_second_pull_asks_for_heads_and_an_offline_one_for_nothing(hub, run):
    hub.add('org/m', {'model.safetensors': b'weights'})
    path = run(PULL)
    assert asked(hub) == [(method, '/org/m/resolve/main/model.safetensors') for method in ('HEAD', 'GET')]
    hub.requests.clear()
    assert run(PULL) == path
    assert asked(hub) == [('HEAD', '/org/m/resolve/main/model.safetensors')]
    hub.requests.clear()
    assert run(PULL, HF_HUB_OFFLINE='1') == path
    assert not hub.requests


CHUNK = 10 * 1024 * 1024  # what the client keeps of a download that ends early is a multiple of it
WEIGHTS = bytes(range(256)) * 43_000


@pytest.mark.parametrize(('fault', 'ranges', 'types'), [
    (Fault(cut_after=CHUNK + 100, times=1), [None, f'bytes={CHUNK}-'], None),
    (Fault(cut_after=CHUNK - 100, times=2), [None, None, None], None),
    (Fault(cut_after=CHUNK + 100), [None] + [f'bytes={CHUNK}-'] * 5, ['RemoteProtocolError']),
    (Fault(cut_after=CHUNK + 100, reset=True), [None], ['ReadError']),
    (Fault(body=WEIGHTS[:-1]), [None], ['OSError', 'Consistency check failed']),
], ids=['once', 'twice', 'for good', 'reset', 'short'])
def test_fault_is_noticed_by_the_client(hub, run, tmp_path, fault, ranges, types):
    hub.add('org/m', {'model.safetensors': WEIGHTS})
    hub.faults['org/m/model.safetensors'] = fault
    result = run(PULL)
    assert [request.range for request in hub.requests if request.method == 'GET'] == ranges
    if types is None:
        assert Path(result).read_bytes() == WEIGHTS
    else:
        assert types[0] in result
        assert all(word in result[-1] for word in types[1:])
        assert cached(tmp_path / 'home') == []
        hub.faults.clear()
        assert Path(run(PULL)).read_bytes() == WEIGHTS


@pytest.mark.parametrize('fault', [
    Fault(body=WEIGHTS[:-1] + b'?'),
    Fault(body=WEIGHTS[:-1], head=True),
], ids=['wrong bytes', 'short at the source'])
def test_fault_is_not_noticed_by_the_client(hub, run, fault):
    """Why a package has to compare the hash itself."""
    hub.add('org/m', {'model.safetensors': WEIGHTS})
    hub.faults['org/m/model.safetensors'] = fault
    path = Path(run(PULL))
    assert path.read_bytes() == fault.body
    assert path.resolve().name == hashlib.sha256(WEIGHTS).hexdigest()


def test_plain_file_with_faults(hub):
    hub.plain['weights.ckpt'] = WEIGHTS
    url = hub.plain_url('weights.ckpt')
    with urllib.request.urlopen(url) as response:
        assert response.read() == WEIGHTS
    with urllib.request.urlopen(urllib.request.Request(url, headers={'Range': 'bytes=11007990-'})) as response:
        assert (response.status, response.headers['Content-Range']) == (206, 'bytes 11007990-11007999/11008000')
        assert response.read() == WEIGHTS[-10:]
    with pytest.raises(urllib.error.HTTPError, match='416'):
        urllib.request.urlopen(urllib.request.Request(url, headers={'Range': 'bytes=11008000-'}))
    hub.faults['files/weights.ckpt'] = Fault(cut_after=1000, times=1)
    with urllib.request.urlopen(url) as response, pytest.raises(http.client.IncompleteRead) as error:
        response.read()
    assert error.value.partial == WEIGHTS[:1000]
    with urllib.request.urlopen(url) as response:
        assert response.read() == WEIGHTS
    with pytest.raises(urllib.error.HTTPError, match='404'):
        urllib.request.urlopen(hub.plain_url('none.ckpt'))


def post(url, data, token=WRITE_TOKEN, method='POST'):
    headers = {'Authorization': f'Bearer {token}'} if token else {}
    return urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers, method=method))


def test_commit_takes_no_large_file_that_is_not_there(hub):
    hub.add('org/m', {'a.txt': b'one'})
    right = hashlib.sha256(b'right').hexdigest()
    lines = [{'key': 'header', 'value': {'summary': 'a'}},
             {'key': 'lfsFile', 'value': {'path': 'a.bin', 'algo': 'sha256', 'oid': right, 'size': 5}}]
    commit = b'\n'.join(json.dumps(line).encode() for line in lines)
    with pytest.raises(urllib.error.HTTPError, match='400'):
        post(f'{hub.url}/api/models/org/m/commit/main', commit)
    with pytest.raises(urllib.error.HTTPError, match='400'):
        post(f'{hub.url}/lfs/org/m/{right}', b'wrong', method='PUT')
    assert sorted(hub.files('org/m')) == ['.gitattributes', 'a.txt']
    post(f'{hub.url}/lfs/org/m/{right}', b'right', token=None, method='PUT')
    post(f'{hub.url}/api/models/org/m/commit/main', commit)
    assert hub.files('org/m')['a.bin'].content == b'right'


def test_commit_on_an_old_parent_is_refused(hub, run):
    first = hub.add('org/m', {'a.txt': b'one'})
    second = hub.add('org/m', {'a.txt': b'two'})
    upload = ('result = api.upload_file(path_or_fileobj=b"three", path_in_repo="a.txt", repo_id="org/m",'
              ' parent_commit=sys.argv[1]).oid')
    assert '412' in run(upload, first)[-1]
    assert hub.files('org/m')['a.txt'].content == b'two'
    third = run(upload, second)
    assert hub.repositories['org/m'].resolve('main').oid == third


def test_nobody_answers_afterwards():
    with HubServer() as hub:
        hub.add('org/m', {'a.txt': b'one'})
        assert urllib.request.urlopen(f'{hub.url}/org/m/resolve/main/a.txt').read() == b'one'
    with pytest.raises(urllib.error.URLError, match='refused'):
        urllib.request.urlopen(f'{hub.url}/org/m/resolve/main/a.txt', timeout=5)
