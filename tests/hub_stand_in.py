"""A stand-in for the Hugging Face Hub on this machine: as much of its HTTP interface as the real client needs.

    with HubStandIn(folder) as hub:
        subprocess.run(command, env=hub.environment(cache, token))

It keeps models and datasets with all their commits, and breaks on demand. Xet, the Hub's own way of sending weights, it
does not speak: the client falls back to LFS (HF_HUB_DISABLE_XET=1).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_the_token_that_may_write", "hf_the_token_that_may_read"
ROLES = {WRITER: "write", READER: "read"}  # both are of the account "user"
REPO = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
LFS_REPO = r"(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)"


@dataclass
class Repo:
    """Its commits are trees: from a path to the SHA-256 of the content, and whether that came by LFS."""

    private: bool
    commits: dict[str, dict[str, tuple[str, bool]]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def add(self, branch: str, tree: dict[str, tuple[str, bool]]) -> str:
        described = json.dumps([tree, len(self.commits)], sort_keys=True)
        sha = hashlib.sha1(described.encode()).hexdigest()
        self.commits[sha] = tree
        self.branches[branch] = sha
        return sha


@dataclass
class Trouble:
    """What happens at the next requests of a method and a path."""

    method: str
    path: str
    what: int | str | Callable[[], object]
    times: int


class RefusedError(Exception):
    """Answered with a status, and with the Hub's own word for what is wrong."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


class HubStandIn(ThreadingHTTPServer):
    """The server, on a free port of 127.0.0.1, in threads of its own.

    Args:
        storage: an empty folder for the content of all files, each called by its SHA-256.
    """

    daemon_threads = True

    def __init__(self, storage: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = storage
        self.storage.mkdir(parents=True, exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}  # by "models" or "datasets", and name
        self.requests: list[str] = []  # method and path
        self.troubles: list[Trouble] = []
        self.lock = threading.Lock()

    def __enter__(self) -> HubStandIn:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """Nothing on the terminal where a client was killed."""

    def environment(self, cache: Path, token: str = "") -> dict[str, str]:
        """The environment of a process for which this is the Hub, with a cache of its own."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        own = {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        return inherited | own | ({"HF_TOKEN": token} if token else {})

    def trouble(self, method: str, path: str, what: int | str | Callable[[], object], times: int = 1) -> None:
        """Has something happen at the next `times` requests of the method whose path matches.

        Args:
            method: of HTTP.
            path: a regular expression, found anywhere in the path.
            what: a status to answer with; "cut": the connection ends in the middle of what the client sends, or of
                the answer; "corrupt": the last byte of the file that is sent or uploaded is wrong; or a function that
                is called before the answer.
            times: how often.
        """
        self.troubles.append(Trouble(method, path, what, times))

    def files(self, name: str, revision: str = "main", kind: str = "models") -> list[str]:
        """The paths in a repo."""
        repo = self.repos[kind, name]
        return sorted(repo.commits[repo.branches.get(revision, revision)])

    def keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.storage / digest).write_bytes(content)
        return digest

    def oid(self, digest: str, lfs: bool) -> str:
        """How git calls a content; LFS calls it by its SHA-256."""
        content = (self.storage / digest).read_bytes()
        return digest if lfs else hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Finds the function for a request, and sends what it returns: JSON, or nothing if it has sent a file."""

    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def handle_request(self) -> None:
        path, _, _ = self.path.partition("?")
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
        self.trouble = self.next_trouble(path)
        length = int(self.headers.get("Content-Length", 0))
        if self.trouble == "cut" and length:
            self.rfile.read(length // 2)
            self.hang_up()
            return
        self.body = self.rfile.read(length)
        try:
            if callable(self.trouble):
                self.trouble()
            if isinstance(self.trouble, int):
                raise RefusedError(self.trouble, "as the test asked")
            for method, pattern, function in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                    with self.server.lock:
                        answer = function(self, **groups)
                    if answer is not None:
                        self.send(200, answer)
                    return
            raise RefusedError(404, f"{self.command} {path} is not spoken here")
        except RefusedError as refused:
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.send(refused.status, {"error": str(refused), **refused.more}, headers)

    def next_trouble(self, path: str) -> object:
        for trouble in self.server.troubles:
            if trouble.times and trouble.method == self.command and re.search(trouble.path, path):
                trouble.times -= 1
                return trouble.what
        return None

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.trouble == "cut":
            self.wfile.write(body[: len(body) // 2])
            self.hang_up()
        elif self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def json(self) -> Any:
        return json.loads(self.body)

    def role(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in ROLES:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return ROLES.get(token)

    def may_write(self, name: str) -> None:
        if self.role() is None:
            raise RefusedError(401, "Invalid username or password.")
        if self.role() != "write" or not name.startswith("user/"):
            raise RefusedError(403, "Forbidden: you have no right to write there")

    def repo(self, kind: str, name: str) -> Repo:
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and self.role() is None):
            raise RefusedError(404 if self.role() else 401, "Repository not found", "RepoNotFound")
        return repo

    def tree(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, tuple[str, bool]]]:
        """The commit that a branch or a commit's SHA means, and its files."""
        repo = self.repo(kind, name)
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    def entry(self, path: str, digest: str, lfs: bool) -> dict[str, Any]:
        content = (self.server.storage / digest).read_bytes()
        entry = {"type": "file", "path": path, "size": len(content), "oid": self.server.oid(digest, False)}
        held = hashlib.sha256(content).hexdigest()  # not `digest`, if the upload was corrupted
        return entry | ({"lfs": {"oid": held, "size": len(content), "pointerSize": 130}} if lfs else {})


for method in ("GET", "HEAD", "POST", "PUT"):
    setattr(Handler, f"do_{method}", Handler.handle_request)


def create(request: Handler) -> dict[str, Any]:
    asked = request.json()
    kind, name = f"{asked.get('type', 'model')}s", f"{asked['organization']}/{asked['name']}"
    request.may_write(name)
    url = f"{request.server.url}/{'datasets/' if kind == 'datasets' else ''}{name}"
    if (kind, name) in request.server.repos:
        raise RefusedError(409, "You already created this repo", url=url)
    repo = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
    repo.add("main", {".gitattributes": (request.server.keep(b"*.safetensors filter=lfs\n"), False)})
    request.server.repos[kind, name] = repo
    return {"url": url}


def branch(request: Handler, kind: str, name: str, new: str) -> dict[str, Any]:
    request.may_write(name)
    if new in request.repo(kind, name).branches:
        raise RefusedError(409, "Reference already exists")
    request.repo(kind, name).branches[new] = request.tree(kind, name, "main")[0]
    return {}


def info(request: Handler, kind: str, name: str, revision: str = "main") -> dict[str, Any]:
    sha, tree = request.tree(kind, name, revision)
    private = request.repo(kind, name).private
    siblings = [{"rfilename": path} for path in sorted(tree)]
    return {"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": [], "downloads": 0}


def list_tree(request: Handler, kind: str, name: str, revision: str, folder: str = "") -> list[dict[str, Any]]:
    _, tree = request.tree(kind, name, revision)
    below = f"{folder}/" if folder else ""
    paths = [path for path in sorted(tree) if path.startswith(below)]
    if not paths:
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    deep = parse_qs(urlsplit(request.path).query).get("recursive") in (["true"], ["True"])
    folders = {str(parent) for path in paths for parent in list(Path(path).parents)[:-1]} - {folder}
    folders = {path for path in folders if path.startswith(below) and (deep or "/" not in path[len(below) :])}
    entries = [request.entry(path, *tree[path]) for path in paths if deep or "/" not in path[len(below) :]]
    return [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)] + entries


def paths_info(request: Handler, kind: str, name: str, revision: str) -> list[dict[str, Any]]:
    _, tree = request.tree(kind, name, revision)
    asked = parse_qs(request.body.decode())["paths"]
    return [request.entry(path, *tree[path]) for path in asked if path in tree]


def preupload(request: Handler, kind: str, name: str, revision: str) -> dict[str, Any]:
    request.may_write(name)
    _, tree = request.tree(kind, name, revision)
    answers = []
    for file in request.json()["files"]:
        mode = "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular"
        there = request.server.oid(*tree[file["path"]]) if file["path"] in tree else None
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": there})
    return {"files": answers}


def lfs_batch(request: Handler, name: str, kind: str = "models") -> dict[str, Any]:
    request.may_write(name)
    objects = []
    for wanted in request.json()["objects"]:
        upload = {"href": f"{request.server.url}/lfs/{wanted['oid']}"}
        actions = {"upload": upload, "verify": {"href": f"{request.server.url}/lfs/verify"}}
        there = (request.server.storage / wanted["oid"]).exists()
        objects.append(wanted | ({} if there else {"actions": actions}))
    return {"transfer": "basic", "objects": objects}


def lfs_upload(request: Handler, digest: str) -> dict[str, Any]:
    if hashlib.sha256(request.body).hexdigest() != digest:
        raise RefusedError(400, "the content is not what its SHA-256 says")
    content = corrupted(request.body) if request.trouble == "corrupt" else request.body
    (request.server.storage / digest).write_bytes(content)
    return {}


def corrupted(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def lfs_verify(request: Handler) -> dict[str, Any]:
    if not (request.server.storage / request.json()["oid"]).exists():
        raise RefusedError(404, "no such object")
    return {}


def commit(request: Handler, kind: str, name: str, revision: str) -> dict[str, Any]:
    request.may_write(name)
    sha, before = request.tree(kind, name, revision)
    tree = dict(before)
    for line in request.body.splitlines():
        key, value = (json.loads(line)[part] for part in ("key", "value"))
        if key == "header" and value.get("parentCommit", sha) != sha:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        if key == "file":
            tree[value["path"]] = (request.server.keep(base64.b64decode(value["content"])), False)
        elif key == "lfsFile":
            if not (request.server.storage / value["oid"]).exists():
                raise RefusedError(400, f"{value['path']} was not uploaded")
            tree[value["path"]] = (value["oid"], True)
        elif key == "deletedFile" and tree.pop(value["path"], None) is None:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
    sha = request.repo(kind, name).add(revision, tree)
    return {"commitOid": sha, "commitUrl": f"{request.server.url}/{name}/commit/{sha}"}


def resolve(request: Handler, name: str, revision: str, path: str, kind: str = "models") -> None:
    sha, tree = request.tree(kind, name, revision)
    if path not in tree:
        request.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        return
    digest, lfs = tree[path]
    content = (request.server.storage / digest).read_bytes()
    if request.trouble == "corrupt":
        content = corrupted(content)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{request.server.oid(digest, lfs)}"', "Accept-Ranges": "bytes"}
    headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))} if lfs else {}
    part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if part is None:
        request.send(200, content, headers)
        return
    first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
    request.send(206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"})


ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", lambda request: {"errors": [], "warnings": []}),
    ("POST", f"/api/{REPO}/branch/(?P<new>[^/]+)", branch),
    ("GET", f"/api/{REPO}(/revision/(?P<revision>[^/]+))?", info),
    ("GET", f"/api/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", list_tree),
    ("POST", f"/api/{REPO}/paths-info/(?P<revision>[^/]+)", paths_info),
    ("POST", f"/api/{REPO}/preupload/(?P<revision>[^/]+)", preupload),
    ("POST", f"/{LFS_REPO}[.]git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/(?P<digest>[0-9a-f]{64})", lfs_upload),
    ("POST", "/lfs/verify", lfs_verify),
    ("POST", f"/api/{REPO}/commit/(?P<revision>[^/]+)", commit),
    ("GET HEAD", f"/{LFS_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]
