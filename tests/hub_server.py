"""A small Hugging Face Hub on loopback: what `huggingface_hub` asks of it, and what can go wrong.

It speaks HTTP as the real one does where a download notices: the list of files with sizes, git
hashes and LFS hashes; commits and ETags in the headers; large files behind a redirect to another
host, which must not see the token; ranges; the error codes of missing, private and gated
repositories. Faults are asked for by what the path contains.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKEN = "hf_test"  # of one who may read everything
OTHER_TOKEN = "hf_other"  # of one who may read what is open
_LFS = (
    ".safetensors",
    ".gguf",
    ".bin",
    ".onnx",
    ".parquet",
)  # and tokenizer.json, as on many repositories
# A data set's name begins with `datasets/`, in all its addresses and here.
_API = re.compile(r"/api/(?:models/([^/]+/[^/]+)|(datasets/[^/]+/[^/]+))(?:/revision/(.+))?")
_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/(.+)")
_RESOLVE = re.compile(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CHUNK = 64 * 1024


@dataclass
class Repository:
    """What one repository holds: revision -> file -> content."""

    revisions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    access: str = "open"  # or private, gated

    def commit(self, revision: str) -> str | None:
        for name, files in self.revisions.items():
            commit = commit_of(files)
            if revision in (name, commit):
                return commit
        return None

    def files(self, commit: str) -> dict[str, bytes]:
        return next(files for files in self.revisions.values() if commit_of(files) == commit)


@dataclass
class Fault:
    """What happens to the next `times` requests whose path contains `where`."""

    where: str
    kind: str  # status, cut, stall, wrong, slow
    value: float = 0  # the status; bytes before the cut or the stall; seconds
    times: int = 1_000_000
    method: str = ""  # any


class HubServer:
    """The server; `url` is what HF_ENDPOINT has to be."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.answers: dict[str, bytes] = {}  # beginning of a path -> what is said instead
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []  # method, path, headers
        self.lock = threading.Lock()
        self.over = threading.Event()  # set when nobody need be kept waiting any more
        hub = self

        class Handler(_Handler):
            server_of_models = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def add(
        self, name: str, files: Mapping[str, bytes], revision: str = "main", access: str = "open"
    ) -> str:
        """Publish a revision of a repository; its commit."""
        repository = self.repositories.setdefault(name, Repository())
        repository.revisions[revision] = dict(files)
        repository.access = access
        return commit_of(files)

    def fail(self, where: str, kind: str, value: float = 0, **more: object) -> None:
        self.faults.append(Fault(where, kind, value, **more))  # type: ignore[arg-type]

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.where in path and fault.method in ("", method) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def asked(self, method: str, part: str) -> list[str]:
        """Paths of the requests so far that contain a text."""
        return [path for verb, path, _ in self.requests if verb == method and part in path]

    def content(self, sha256: str) -> bytes | None:
        for repository in self.repositories.values():
            for files in repository.revisions.values():
                for data in files.values():
                    if hashlib.sha256(data).hexdigest() == sha256:
                        return data
        return None

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def serving() -> Iterator[HubServer]:
    """A running server."""
    hub = HubServer()
    thread = threading.Thread(target=hub.serve)
    thread.start()
    try:
        yield hub
    finally:
        hub.close()
        thread.join()


@contextmanager
def asked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[HubServer]:
    """A Hub that this process asks, with empty caches, and no waiting between tries."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
        monkeypatch.setenv("TRILOBIT_HOME", str(folder / "home"))
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
        huggingface_hub.close_session()


def folder_files(folder: Path) -> dict[str, bytes]:
    """A folder as the files of a repository."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def commit_of(files: Mapping[str, bytes]) -> str:
    facts = sorted((name, git_blob(data)) for name, data in files.items())
    return hashlib.sha1(json.dumps(facts).encode()).hexdigest()


def in_lfs(name: str) -> bool:
    return name.endswith(_LFS) or name == "tokenizer.json"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of_models: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        hub = self.server_of_models
        path = unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, dict(self.headers.items())))
        fault = hub.fault(self.command, path)
        if fault and fault.kind == "slow":
            hub.over.wait(fault.value)
        if fault and fault.kind == "status":
            self._send(int(fault.value), {}, b"a fault")
            return
        for begin, answer in hub.answers.items():
            if path.startswith(begin):
                self._send(200, {"Content-Type": "application/json"}, answer)
                return
        if match := _TREE.fullmatch(path):
            self._tree(match[1], match[2])
        elif match := _API.fullmatch(path):
            self._list(match[1] or match[2], match[3] or "main")
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match[1], match[2], match[3], fault)
        elif path.startswith("/cdn/"):
            self._large(path.removeprefix("/cdn/"), fault)
        else:
            self._send(404, {}, b"")

    def _repository(self, name: str) -> Repository | None:
        """The repository, or None when the refusal has been sent."""
        repository = self.server_of_models.repositories.get(name)
        shown = self.headers.get("Authorization")
        may_read = shown == f"Bearer {TOKEN}"
        if shown not in (None, f"Bearer {TOKEN}", f"Bearer {OTHER_TOKEN}"):
            message = "Invalid credentials in Authorization header"
            self._send(401, {"X-Error-Message": message}, b"")
            return None
        if repository is None or (repository.access == "private" and not may_read):
            status = 404 if shown else 401  # the real Hub does not tell strangers
            self._send(status, {"X-Error-Code": "RepoNotFound"}, b"")
            return None
        if repository.access == "gated" and not may_read and "/resolve/" in self.path:
            self._send(403 if shown else 401, {"X-Error-Code": "GatedRepo"}, b"")
            return None
        return repository

    def _list(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.commit(revision)
        if commit is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        siblings = []
        for file, data in repository.files(commit).items():
            sibling: dict[str, object] = {
                "rfilename": file,
                "size": len(data),
                "blobId": git_blob(data),
            }
            if in_lfs(file):
                sha256 = hashlib.sha256(data).hexdigest()
                sibling["blobId"] = git_blob(_pointer(sha256, len(data)))
                sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        body = {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _tree(self, name: str, revision: str) -> None:
        """What `snapshot_download` asks for instead of the list."""
        repository = self._repository(name)
        if repository is None:
            return
        entries = []
        for file, data in repository.files(repository.commit(revision) or "").items():
            entry: dict[str, object] = {"type": "file", "path": file, "size": len(data)}
            entry["oid"] = git_blob(data)
            if in_lfs(file):
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        self._send(200, {"Content-Type": "application/json"}, json.dumps(entries).encode())

    def _resolve(self, name: str, revision: str, file: str, fault: Fault | None) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        commit = repository.commit(revision)
        if commit is None:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return
        data = repository.files(commit).get(file)
        headers = {"X-Repo-Commit": commit}
        if data is None:
            self._send(404, {**headers, "X-Error-Code": "EntryNotFound"}, b"")
        elif in_lfs(file):
            sha256 = hashlib.sha256(data).hexdigest()
            headers["X-Linked-Size"] = str(len(data))
            headers["X-Linked-Etag"] = f'"{sha256}"'
            headers["Location"] = f"http://localhost:{self.server_of_models.port}/cdn/{sha256}"
            self._send(302, headers, b"")
        else:
            headers["ETag"] = f'"{git_blob(data)}"'
            self._ranged(data, headers, fault)

    def _large(self, sha256: str, fault: Fault | None) -> None:
        data = self.server_of_models.content(sha256)
        if data is None:
            self._send(404, {}, b"")
        elif "Authorization" in self.headers:  # it would be somebody else's machine
            self._send(400, {}, b"")
        else:
            self._ranged(data, {"ETag": f'"{sha256}"'}, fault)

    def _ranged(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        headers["Accept-Ranges"] = "bytes"
        status, body = 200, data
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
            status, body = 206, data[start:]
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if fault and fault.kind == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault and fault.kind in ("cut", "stall"):
            self._send(status, headers, body, stop_after=int(fault.value))
            self.close_connection = True
            if fault.kind == "stall":
                self.server_of_models.over.wait()
        else:
            self._send(status, headers, body)

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, stop_after: int | None = None
    ) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:stop_after])
        except (BrokenPipeError, ConnectionResetError):  # the client was killed
            self.close_connection = True


def _pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    ).encode()
