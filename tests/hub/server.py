"""A stand-in for the Hub: those of its endpoints that publishing, pulling and `datasets` use.

Repositories live in memory, a commit at a time. A `Fault` makes some requests go wrong: it cuts the
connection, before or after the request had its effect, or answers with a status.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_" + "w" * 34, "hf_" + "r" * 34
OWNER = "somebody"
_REPO = r"(?P<name>[^/]+/[^/]+)"
_API = re.compile(
    rf"/api/(?P<kind>dataset|model)s/{_REPO}(?:/(?P<what>[a-z-]+))?(?:/(?P<rest>.*))?"
)
_RESOLVE = re.compile(
    rf"(?:/(?P<prefix>datasets))?/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
)
_BATCH = re.compile(rf"(?:/(?P<prefix>datasets))?/{_REPO}\.git/info/lfs/objects/batch")


@dataclass
class Fault:
    """What befalls the next `times` requests of a method whose path holds a text."""

    method: str
    part: str
    times: int = 1
    status: int = 0  # 0: the connection is cut
    late: bool = False  # only after the request has had its effect
    code: str = ""  # the Hub's name of the error


@dataclass
class Repo:
    """A repository: every commit with all its files, the first one empty but for attributes."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*\n"}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    def sha(self, at: int = -1) -> str:
        number = len(self.commits) - 1 if at < 0 else at
        return hashlib.sha1(f"{id(self)} {number}".encode()).hexdigest()

    def at(self, revision: str) -> dict[str, bytes] | None:
        if revision == "main":
            return self.files
        found = [files for at, files in enumerate(self.commits) if self.sha(at) == revision]
        return found[0] if found else None


@dataclass
class Hub:
    """The state of the stand-in, for tests to look at."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.part in path:
                    fault.times -= 1
                    return fault
        return None


class _CutError(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_POST = do_PUT = do_HEAD = do_GET

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        fault = self.hub.fault(self.command, path)
        if fault and not fault.late and not fault.status:
            self.rfile.read(min(64, self._size()))  # in the middle of the body
            return self._cut()
        body = self.rfile.read(self._size())
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            if fault and fault.status:
                return self._error(fault.status, "asked for by a test", fault.code)
            answer = self._answer(path, body)
        if fault:
            return self._cut()
        status, data, headers = answer
        self._send(status, data, headers)

    def _size(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, message: str, code: str = "") -> None:
        self._send(*_failed(status, message, code))

    def _answer(self, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (WRITER, READER):
            return _failed(401, "Invalid credentials in Authorization header")
        if path == "/api/whoami-v2":
            return _json({"name": OWNER, "type": "user"}) if token else _failed(401, "no token")
        if path == "/api/validate-yaml":
            return _json({"warnings": [], "errors": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        if path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            assert hashlib.sha256(body).hexdigest() == oid
            self.hub.blobs[oid] = body
            return 200, b"", {}
        if match := _BATCH.fullmatch(path):
            kind = "dataset" if match["prefix"] else "model"
            return self._batch(self._seen(kind, match["name"], token), json.loads(body), token)
        if match := _RESOLVE.fullmatch(path):
            kind = "dataset" if match["prefix"] else "model"
            repo = self._seen(kind, match["name"], token)
            return self._resolve(repo, match["revision"], match["path"], kind, match["name"])
        if match := _API.fullmatch(path):
            repo = self._seen(match["kind"], match["name"], token)
            if repo is None:
                return _failed(404 if token else 401, "Repository not found", "RepoNotFound")
            return self._api(repo, match["name"], match["what"], match["rest"] or "", body, token)
        return _failed(404, f"no such place {path}")

    def _seen(self, kind: str, name: str, token: str) -> Repo | None:
        repo = self.hub.repos.get((kind, name))
        return None if repo is not None and repo.private and not token else repo

    def _create(self, asked: dict[str, Any], token: str) -> tuple[int, bytes, dict[str, str]]:
        owner, kind = asked.get("organization") or OWNER, asked.get("type", "model")
        if token != WRITER or owner != OWNER:
            return _failed(403, f"You don't have the rights to create a {kind} under {owner}")
        key = (kind, f"{owner}/{asked['name']}")
        if key in self.hub.repos:
            return _failed(409, "You already created this repo")
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[key] = Repo(private)
        return _json({"url": f"{self.hub.url}/{kind}s/{key[1]}", "name": key[1]})

    def _batch(
        self, repo: Repo | None, asked: dict[str, Any], token: str
    ) -> tuple[int, bytes, dict[str, str]]:
        if repo is None or token != WRITER:
            return _failed(403, "you may not write here")
        objects = []
        for each in asked["objects"]:
            known = each["oid"] in self.hub.blobs
            href = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}
            objects.append({**each, **({} if known else {"actions": href})})
        return _json({"transfer": "basic", "objects": objects})

    def _resolve(
        self, repo: Repo | None, revision: str, path: str, kind: str, name: str
    ) -> tuple[int, bytes, dict[str, str]]:
        if repo is None:
            return _failed(401, "Repository not found", "RepoNotFound")
        files = repo.at(revision)
        if files is None or path not in files:
            return _failed(404, f"{path} does not exist", "EntryNotFound")
        data = files[path]
        headers = {
            "ETag": f'"{_oid(path, data)}"',
            "X-Repo-Commit": repo.sha() if revision == "main" else revision,
            "Accept-Ranges": "bytes",
        }
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            return 206, data[start : end + 1], headers
        return 200, data, headers

    def _api(
        self, repo: Repo, name: str, what: str | None, rest: str, body: bytes, token: str
    ) -> tuple[int, bytes, dict[str, str]]:
        revision, _, below = rest.partition("/")
        if what in (None, "revision"):
            files = repo.at(revision or "main")
            if files is None:
                return _failed(404, "Invalid rev id", "RevisionNotFound")
            at = [sha for sha in map(repo.sha, range(len(repo.commits))) if sha == revision]
            return _json(
                {
                    "_id": name,
                    "id": name,
                    "sha": at[0] if at else repo.sha(),
                    "private": repo.private,
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "lastModified": "2026-01-01T00:00:00.000Z",
                    "cardData": _metadata(files),
                }
            )
        if what in ("tree", "paths-info"):
            files = repo.at(revision)
            if files is None:
                return _failed(404, "Invalid rev id", "RevisionNotFound")
            if what == "tree":
                deep = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower()
                found = _tree(files, below, deep in ("true", "1"))
                return _json(found) if found else _failed(404, "no folder", "EntryNotFound")
            asked = json.loads(body)["paths"]
            entries = {each["path"]: each for path in asked for each in _paths(files, path)}
            return _json(list(entries.values()))
        if token != WRITER or not name.startswith(f"{OWNER}/"):
            return _failed(403, "you may not write here")
        if what == "preupload":
            answers = []
            for each in json.loads(body)["files"]:
                before = repo.files.get(each["path"])
                answers.append(
                    {
                        "path": each["path"],
                        "uploadMode": "lfs" if _large(each["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": None if before is None else _oid(each["path"], before),
                    }
                )
            return _json({"files": answers})
        if what == "commit":
            return self._commit(repo, name, [json.loads(line) for line in body.splitlines()])
        return _failed(404, f"nothing at {what}")

    def _commit(
        self, repo: Repo, name: str, lines: list[dict[str, Any]]
    ) -> tuple[int, bytes, dict[str, str]]:
        files = dict(repo.files)
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.sha():
            return _failed(412, "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repo.commits.append(files)
        repo.messages.append(lines[0]["value"]["summary"])
        url = f"{self.hub.url}/{name}/commit/{repo.sha()}"
        return _json({"commitUrl": url, "commitOid": repo.sha(), "success": True})


def _large(path: str) -> bool:
    return path.endswith((".parquet", ".png", ".safetensors"))


def _oid(path: str, data: bytes) -> str:
    if _large(path) and data:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if _large(path) and data:
        entry["lfs"] = {"oid": _oid(path, data), "size": len(data), "pointerSize": 130}
    return entry


def _tree(files: dict[str, bytes], below: str, deep: bool) -> list[dict[str, Any]]:
    prefix = f"{below.strip('/')}/" if below.strip("/") else ""
    found: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if deep else min(2, len(parts))):
            folder = prefix + "/".join(parts[:depth])
            found.setdefault(
                folder, {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            )
        if deep or len(parts) == 1:
            found[path] = _entry(path, data)
    return list(found.values())


def _paths(files: dict[str, bytes], path: str) -> Iterator[dict[str, Any]]:
    if path in files:
        yield _entry(path, files[path])
    elif any(each.startswith(f"{path}/") for each in files):
        yield {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}


def _metadata(files: dict[str, bytes]) -> Any:
    import yaml

    text = files.get("README.md", b"").decode()
    return yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None


def _json(data: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(data).encode(), {"Content-Type": "application/json"}


def _failed(status: int, message: str, code: str = "") -> tuple[int, bytes, dict[str, str]]:
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return status, json.dumps({"error": message}).encode(), headers


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on a free port, until the block ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
