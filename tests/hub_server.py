"""A small Hugging Face Hub on loopback, for tests that run the real client in fresh processes.

Passing against it does not prove that the real Hub accepts an upload: it answers the calls that huggingface_hub 2.4 was
seen to make, in the plain way (no Xet storage, no content delivery network), and checks of a request only what is
written here.

    with HubServer() as hub:
        oid = hub.add('org/name', {'config.json': b'{}', 'model.safetensors': weights}, tag='v1')
        hub.faults['org/name/model.safetensors'] = Fault(cut_after=1000, times=1)
        subprocess.run([sys.executable, ...], env=hub.env(tmp_path, token=WRITE_TOKEN))
        assert [request.method for request in hub.requests] == ['HEAD', 'GET']
        assert hub.files('org/name', 'v1')['config.json'].content == b'{}'

The client reads its environment when it is imported, so each process has one hub, one cache and one token. Ordinary
downloads, such as torch.hub's, find what is in ``hub.plain`` under ``hub.plain_url(NAME)``.
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

WRITE_TOKEN = 'hf_write'
READ_TOKEN = 'hf_read'

_LFS_SUFFIXES = ('.bin', '.ckpt', '.gz', '.npz', '.onnx', '.pt', '.pth', '.safetensors', '.tar', '.zip')
_ATTRIBUTES = ''.join(f'*{suffix} filter=lfs diff=lfs merge=lfs -text\n' for suffix in _LFS_SUFFIXES).encode()
_LFS_SIZE = 10_000_000  # larger files go to LFS whatever they are called


class HubError(Exception):
    """A refusal; the client tells repositories, revisions and entries that are not found by the code."""

    def __init__(
            self, status: int, message: str, code: str = '', headers: Mapping[str, str] | None = None, **more: str,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {'X-Error-Message': message, **({'X-Error-Code': code} if code else {}), **(headers or {})}
        self.answer = {'error': message, **more}


@dataclass
class Fault:
    """What goes wrong when a file is downloaded; HEAD keeps announcing the file as it should be.

    A fault stays until it is removed from ``HubServer.faults``.
    """

    cut_after: int | None = None
    """Byte of the file at which the connection ends; a resumed download gets no further."""
    reset: bool = False
    """Whether the cut connection is reset, as by a broken network, and not closed, as by a server that stops."""
    body: bytes | None = None
    """What is sent in place of the file."""
    head: bool = False
    """Whether HEAD, too, announces the length of the body."""
    times: int | None = None
    """Number of downloads that it strikes, None for all."""

    def strikes(self, method: str) -> bool:
        """Whether this request suffers; counts the downloads."""
        if method == 'HEAD':
            return self.head and self.times != 0
        if self.times is not None:
            self.times -= 1
        return self.times is None or self.times >= 0


class Request(NamedTuple):
    """A request as the log keeps it."""

    method: str
    path: str
    status: int
    token: str | None
    range: str | None


@dataclass(frozen=True)
class File:
    """One version of a file."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob(self) -> bytes:
        """What git keeps: the content, or the pointer that stands for a large file."""
        pointer = f'version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n'
        return pointer.encode() if self.lfs else self.content

    @property
    def blob_id(self) -> str:
        """What git calls it."""
        return hashlib.sha1(b'blob %d\0' % len(self.blob) + self.blob).hexdigest()

    @property
    def etag(self) -> str:
        """What the Hub calls the file, and the client its copy in the cache."""
        return self.sha256 if self.lfs else self.blob_id

    def describe(self, path: str) -> dict[str, Any]:
        """As the listings have it."""
        size = len(self.content)
        lfs = {'oid': self.sha256, 'sha256': self.sha256, 'size': size, 'pointerSize': len(self.blob)}
        return {
            'type': 'file', 'path': path, 'oid': self.blob_id, 'blobId': self.blob_id, 'size': size,
            **({'lfs': lfs} if self.lfs else {}),
        }


class Commit(NamedTuple):
    """A state of all files."""

    oid: str
    parent: str | None
    message: str
    files: dict[str, File]


class Repository:
    """Commits, with the branches, tags and pull requests that point at them."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.commit('refs/heads/main', {'.gitattributes': File(_ATTRIBUTES, False)}, 'initial commit')

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, a tag, a ref or a hash stands for."""
        for name in (revision, f'refs/heads/{revision}', f'refs/tags/{revision}'):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if revision not in self.commits:
            raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return self.commits[revision]

    def commit(
            self, ref: str, changes: Mapping[str, File | None], message: str, parent: Commit | None = None) -> Commit:
        """Make a commit on top of its parent and move the ref there; a change to None removes the file."""
        state = {**(parent.files if parent else {}), **changes}
        files = {path: file for path, file in sorted(state.items()) if file is not None}
        for file in files.values():
            if file.lfs:
                self.stored[file.sha256] = file.content
        listing = [parent and parent.oid, message, len(self.commits), [(p, f.etag) for p, f in files.items()]]
        oid = hashlib.sha1(json.dumps(listing).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent.oid if parent else None, message, files)
        self.refs[ref] = oid
        return self.commits[oid]

    def point(self, ref: str, revision: str) -> None:
        """Make a new branch or tag."""
        if ref in self.refs:
            raise HubError(409, f'Reference {ref} already exists')
        self.refs[ref] = self.resolve(revision).oid


class HubServer:
    """The server, running while its context is open.

    Attributes:
        url: Where it is, the client's ``HF_ENDPOINT``; nobody answers there once the context is left.
        repositories: By name, 'org/name'.
        plain: Ordinary files by name, see `plain_url`.
        faults: What goes wrong, by 'org/name/PATH' at any revision, or 'files/NAME'.
        requests: All that was asked, oldest first; ``requests.clear()`` starts anew.
        tokens: Who may come in, and whether to write.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.plain: dict[str, bytes] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.tokens = {WRITE_TOKEN: 'write', READ_TOKEN: 'read'}
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (_Handler,), {'hub': self}))
        self.url = f'http://127.0.0.1:{self._server.server_port}'

    def __enter__(self) -> 'HubServer':
        threading.Thread(target=self._server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(
            self,
            repo_id: str,
            files: Mapping[str, bytes | None] | str | Path,
            branch: str = 'main',
            tag: str | None = None,
            private: bool = False,
            lfs: bool = True,
    ) -> str:
        """Commit files, without a request.

        Args:
            repo_id: The repository, created if need be.
            files: Contents by path, None to remove a file; or a folder.
            branch: Branch to commit to, started at main if it is new.
            tag: A tag for the commit.
            private: Whether a new repository asks for a token.
            lfs: Whether large files and weights go to LFS.

        Returns:
            Hash of the commit.
        """
        if not isinstance(files, Mapping):
            folder = Path(files)
            files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
        repository = self.repositories.setdefault(repo_id, Repository(private))
        changes = {
            path: None if data is None else File(data, lfs and _is_lfs(path, len(data)))
            for path, data in files.items()}
        ref = f'refs/heads/{branch}'
        parent = repository.resolve(branch if ref in repository.refs else 'main')
        oid = repository.commit(ref, changes, 'add files', parent).oid
        if tag is not None:
            repository.point(f'refs/tags/{tag}', oid)
        return oid

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, File]:
        """The files of a repository, with their right hashes."""
        return dict(self.repositories[repo_id].resolve(revision).files)

    def plain_url(self, name: str) -> str:
        """Address of an ordinary file."""
        return f'{self.url}/files/{name}'

    def env(self, home: str | Path, token: str | None = None, **more: str) -> dict[str, str]:
        """Environment of a process whose hub this is.

        Args:
            home: Folder for its cache.
            token: Its token.
            **more: Further variables, such as ``HF_HUB_OFFLINE='1'``.
        """
        ours = re.compile(r'HF_|HUGGING|TRANSFORMERS_|TORCH_HOME|.*_PROXY$', re.IGNORECASE)
        return {
            **{key: value for key, value in os.environ.items() if not ours.match(key)},
            'HF_ENDPOINT': self.url, 'HF_HOME': str(home), 'TORCH_HOME': str(Path(home) / 'torch'),
            'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'HF_HUB_DISABLE_PROGRESS_BARS': '1',
            **({'HF_TOKEN': token} if token else {}),
            **more,
        }


def _is_lfs(path: str, size: int) -> bool:
    return path.endswith(_LFS_SUFFIXES) or size > _LFS_SIZE


_ID, _REV = r'([^/]+/[^/]+?)', r'([^/]+)'
_ROUTES = tuple((re.compile(f'(?:{methods}) {path}'), name) for methods, path, name in (
    ('POST', '/api/repos/create', 'create'),
    ('POST', '/api/validate-yaml', 'validate'),
    ('GET', '/api/whoami-v2', 'whoami'),
    ('GET', f'/api/models/{_ID}(?:/revision/{_REV})?', 'info'),
    ('GET', f'/api/models/{_ID}/refs', 'refs'),
    ('GET', f'/api/models/{_ID}/tree/{_REV}', 'tree'),
    ('POST', f'/api/models/{_ID}/paths-info/{_REV}', 'paths'),
    ('POST', f'/api/models/{_ID}/branch/{_REV}', 'branch'),
    ('POST', f'/api/models/{_ID}/tag/{_REV}', 'tag'),
    ('POST', f'/api/models/{_ID}/preupload/{_REV}', 'preupload'),
    ('POST', f'/api/models/{_ID}/commit/{_REV}', 'commit'),
    ('POST', rf'/{_ID}\.git/info/lfs/objects/batch', 'lfs_batch'),
    ('PUT', f'/lfs/{_ID}/([0-9a-f]{{64}})', 'lfs_upload'),
    ('HEAD|GET', f'/{_ID}/resolve/{_REV}/(.+)', 'resolve'),
    ('HEAD|GET', '/files/(.+)', 'plain'),
))


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection; a method per route, named in the table above, returns JSON or sends by itself."""

    hub: HubServer
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.body = self._read_body()
        self.token = (self.headers['Authorization'] or '').removeprefix('Bearer ') or None
        try:
            if self.token is not None and self.token not in self.hub.tokens:
                raise HubError(401, 'Invalid credentials in Authorization header')
            for pattern, name in _ROUTES:
                if match := pattern.fullmatch(f'{self.command} {url.path}'):
                    answer = getattr(self, name)(*(group and unquote(group) for group in match.groups()))
                    break
            else:
                raise HubError(404, 'Not Found')
        except HubError as error:
            self._send_json(error.answer, error.status, error.headers)
        else:
            if answer is not None:
                self._send_json(answer)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # Routes.

    def create(self) -> Any:
        wanted = json.loads(self.body)
        self._check_writer()
        repo_id = f'{wanted["organization"] or "tester"}/{wanted["name"]}'
        url = f'{self.hub.url}/{repo_id}'
        with self.hub.lock:
            if repo_id in self.hub.repositories:
                raise HubError(409, 'You already created this model repo', url=url)
            self.hub.repositories[repo_id] = Repository(wanted.get('visibility') == 'private')
        return {'url': url}

    def validate(self) -> Any:
        return {'errors': [], 'warnings': []}

    def whoami(self) -> Any:
        if self.token is None:
            raise HubError(401, 'Invalid username or password.')
        role = self.hub.tokens[self.token]
        return {'type': 'user', 'name': 'tester', 'orgs': [], 'auth': {'accessToken': {'role': role}}}

    def info(self, repo_id: str, revision: str | None) -> Any:
        repository = self._repository(repo_id)
        commit = repository.resolve(revision or 'main')
        siblings = [
            {'rfilename': path, **(file.describe(path) if 'blobs' in self.query else {})}
            for path, file in commit.files.items()]
        return {'id': repo_id, 'sha': commit.oid, 'private': repository.private, 'tags': [], 'siblings': siblings}

    def refs(self, repo_id: str) -> Any:
        found = self._repository(repo_id).refs.items()
        kinds = {'branches': 'refs/heads/', 'tags': 'refs/tags/', 'pullRequests': 'refs/pr/'}
        return {'converts': [], **{
            kind: [{'name': ref.removeprefix(start), 'ref': ref, 'targetCommit': oid}
                   for ref, oid in found if ref.startswith(start)]
            for kind, start in kinds.items()}}

    def tree(self, repo_id: str, revision: str) -> Any:
        files = self._repository(repo_id).resolve(revision).files  # the folders themselves are left out
        recursive = self.query.get('recursive') == ['true']
        return [file.describe(path) for path, file in files.items() if recursive or '/' not in path]

    def paths(self, repo_id: str, revision: str) -> Any:
        files = self._repository(repo_id).resolve(revision).files
        asked = parse_qs(self.body.decode())['paths']
        return [files[path].describe(path) for path in asked if path in files]

    def branch(self, repo_id: str, name: str) -> Any:
        with self._writing(repo_id) as repository:
            repository.point(f'refs/heads/{name}', json.loads(self.body).get('startingPoint', 'main'))
        return {}

    def tag(self, repo_id: str, revision: str) -> Any:
        with self._writing(repo_id) as repository:
            repository.point(f'refs/tags/{json.loads(self.body)["tag"]}', revision)
        return {}

    def preupload(self, repo_id: str, revision: str) -> Any:
        with self._writing(repo_id) as repository:
            present = repository.resolve(revision).files
        return {'files': [{
            'path': file['path'],
            'uploadMode': 'lfs' if _is_lfs(file['path'], file['size']) else 'regular',
            'shouldIgnore': False,
            'oid': present[file['path']].etag if file['path'] in present else None,
        } for file in json.loads(self.body)['files']]}

    def lfs_batch(self, repo_id: str) -> Any:
        with self._writing(repo_id) as repository:
            stored = set(repository.stored)
        return {'transfer': 'basic', 'objects': [
            {**wanted, **({} if wanted['oid'] in stored else
                          {'actions': {'upload': {'href': f'{self.hub.url}/lfs/{repo_id}/{wanted["oid"]}'}}})}
            for wanted in json.loads(self.body)['objects']]}

    def lfs_upload(self, repo_id: str, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, 'The content does not match its hash')
        with self.hub.lock:  # the address is the permission, as the real Hub signs it
            self.hub.repositories[repo_id].stored[oid] = self.body
        return {}

    def commit(self, repo_id: str, revision: str) -> Any:
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        with self._writing(repo_id) as repository:
            parent = repository.resolve(revision)
            if header['value'].get('parentCommit') not in (None, parent.oid):
                raise HubError(412, 'A commit has happened since. Please refresh and try again.')
            changes: dict[str, File | None] = {}
            for operation in operations:
                changes |= self._change(repository, parent, operation['key'], operation['value'])
            answer: dict[str, Any] = {'success': True}
            ref = f'refs/heads/{revision}'
            if self.query.get('create_pr') == ['1']:
                number = 1 + sum(name.startswith('refs/pr/') for name in repository.refs)
                ref = f'refs/pr/{number}'
                answer['pullRequestUrl'] = f'{self.hub.url}/{repo_id}/discussions/{number}'
            elif revision in repository.refs:  # a pull request gets another commit
                ref = revision
            elif ref not in repository.refs:
                raise HubError(400, f'{revision} is no branch')
            oid = repository.commit(ref, changes, header['value']['summary'], parent).oid
        return {**answer, 'commitOid': oid, 'commitUrl': f'{self.hub.url}/{repo_id}/commit/{oid}'}

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self._repository(repo_id).resolve(revision)
        headers = {'X-Repo-Commit': commit.oid}
        if path not in commit.files:
            raise HubError(404, 'Entry not found', 'EntryNotFound', headers)
        file = commit.files[path]
        self._send_content(f'{repo_id}/{path}', file.content, {**headers, 'ETag': f'"{file.etag}"'})

    def plain(self, name: str) -> None:
        if name not in self.hub.plain:
            raise HubError(404, 'Not Found')
        self._send_content(f'files/{name}', self.hub.plain[name], {})

    # What the routes are made of.

    def _check_writer(self) -> None:
        if self.token is None:
            raise HubError(401, 'Invalid username or password.')
        if self.hub.tokens[self.token] != 'write':
            raise HubError(403, 'You must use a token with write access')

    def _repository(self, repo_id: str) -> Repository:
        """What the Hub does not show it calls missing; without a token, it first asks for one."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and self.token is None):
            if self.token is None:
                raise HubError(401, 'Invalid username or password.', 'RepoNotFound')
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        return repository

    @contextmanager
    def _writing(self, repo_id: str) -> Iterator[Repository]:
        repository = self._repository(repo_id)
        self._check_writer()
        with self.hub.lock:
            yield repository

    def _change(self, repository: Repository, parent: Commit, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        path = value['path']
        if kind == 'file':
            return {path: File(base64.b64decode(value['content']), False)}
        if kind == 'lfsFile':
            if value['oid'] not in repository.stored:
                raise HubError(400, f'{path} points at a large file that was not uploaded')
            return {path: File(repository.stored[value['oid']], True)}
        if kind == 'deletedFile' and path in parent.files:
            return {path: None}
        if kind == 'deletedFile':
            raise HubError(404, f"A file with this name doesn't exist: {path}", 'EntryNotFound')
        raise HubError(400, f'Unknown operation {kind!r}')

    def _read_body(self) -> bytes:
        if self.headers['Transfer-Encoding'] != 'chunked':
            return self.rfile.read(int(self.headers['Content-Length'] or 0))
        body = b''
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send_json(self, answer: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self._send_head(status, {'Content-Type': 'application/json', 'Content-Length': len(data), **(headers or {})})
        if self.command != 'HEAD':
            self.wfile.write(data)

    def _send_content(self, key: str, content: bytes, headers: Mapping[str, Any]) -> None:
        """Send a file or the range that was asked for, and whatever fault there is."""
        with self.hub.lock:
            fault = self.hub.faults.get(key)
            if fault is None or not fault.strikes(self.command):
                fault = Fault()
        content = content if fault.body is None else fault.body
        start, size = 0, len(content)
        headers = {'Content-Type': 'application/octet-stream', 'Accept-Ranges': 'bytes', **headers}
        if wanted := re.fullmatch(r'bytes=(\d+)-', self.headers['Range'] or ''):
            start = int(wanted[1])
            headers['Content-Range'] = f'bytes {start}-{size - 1}/{size}'
            if start >= size:
                raise HubError(416, 'Range Not Satisfiable')
        self._send_head(206 if wanted else 200, {**headers, 'Content-Length': size - start})
        if self.command == 'HEAD':
            return
        if fault.cut_after is None or fault.cut_after >= size:
            self.wfile.write(content[start:])
            return
        self.wfile.write(content[start:fault.cut_after])
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            os.close(self.connection.detach())

    def _send_head(self, status: int, headers: Mapping[str, Any]) -> None:
        self.hub.requests.append(
            Request(self.command, unquote(self.path), status, self.token, self.headers['Range']))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the log is ``HubServer.requests``."""
