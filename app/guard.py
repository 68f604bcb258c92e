"""What stands between the network and Gradio: a folder for each upload and its end, no other origin, no fetching."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gradio.routes import App

# Gradio's page has inline scripts and styles, and makes functions of text; nothing comes from, or goes to, elsewhere.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
FRAMES = "frame-ancestors 'self' https://huggingface.co https://*.hf.space"  # a Space is shown in a frame
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
# Tags that lead a browser, or whoever makes a preview of the page, to another server.
ELSEWHERE = re.compile(rb"""<(?:link|meta|script)\b[^>]*\b(?:href|content|src)=["']https?://[^>]*>(?:</script>)?""")
ADDRESS = re.compile(r"\s*(?:https?|ftp|file):", re.IGNORECASE)
# What is open as long as a visitor is there: a page's or client's heartbeat, and the answer that curl reads.
SESSION = re.compile(r"/heartbeat/[^/]+$|/call/(?:v2/)?[^/]+/[^/]+$")
LARGEST_BODY = 16_000_000  # bytes of a request that is no upload
UPLOAD = "upload-"  # how the folders of uploads begin
upload_folder: ContextVar[Path | None] = ContextVar("upload_folder", default=None)


class Uploads:
    """The files of a server: each upload has a folder of its own in `folder`, and goes with it.

    Gradio would give two uploads of one content one path, and the end of one request would be that of the other.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.of_session: dict[str, set[Path]] = {}
        self.lock = threading.Lock()

    def new(self) -> Path:
        """The folder of the next upload, not made yet."""
        return self.folder / f"{UPLOAD}{secrets.token_hex(16)}"

    def folder_of(self, path: Any) -> Path | None:
        """The folder of the upload that a file is of; None where it is no upload."""
        try:
            parts = Path(path).resolve().relative_to(self.folder).parts
        except (TypeError, ValueError, OSError):
            return None
        return self.folder / parts[0] if len(parts) > 1 and parts[0].startswith(UPLOAD) else None

    def note(self, session: str, paths: Iterable[str]) -> None:
        """Remembers what a visitor's requests name, to be deleted when the visitor leaves."""
        folders = {folder for folder in map(self.folder_of, paths) if folder is not None}
        if folders:
            with self.lock:
                self.of_session.setdefault(session, set()).update(folders)

    def forget(self, path: str) -> None:
        """Deletes the upload that a file is of."""
        if folder := self.folder_of(path):
            shutil.rmtree(folder, ignore_errors=True)

    def leave(self, session: str) -> None:
        """Deletes what a visitor has uploaded."""
        with self.lock:
            folders = self.of_session.pop(session, set())
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, seconds: float, spared: frozenset[str] = frozenset()) -> None:
        """Deletes what was not touched for `seconds`, but for the names that are `spared`."""
        for entry in list(self.folder.iterdir()):
            with contextlib.suppress(OSError):
                touched = max(path.stat().st_mtime for path in (entry, *entry.rglob("*")))
                if entry.name in spared or time.time() - touched < seconds:
                    continue
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with self.lock:
            self.of_session = {
                session: there
                for session, folders in self.of_session.items()
                if (there := {folder for folder in folders if folder.exists()})
            }


class FoldersOfUploads(App):
    """Gradio's app, whose folder for uploads is that of the request."""

    @property
    def uploaded_file_dir(self) -> str:
        return str(upload_folder.get() or os.environ["GRADIO_TEMP_DIR"])

    @uploaded_file_dir.setter
    def uploaded_file_dir(self, value: str) -> None:
        """It is not set; Gradio tries once."""


class Guard:
    """The ASGI middleware."""

    def __init__(self, app: Any, uploads: Uploads) -> None:
        self.app, self.uploads = app, uploads
        frames = FRAMES if "SPACE_ID" in os.environ else "frame-ancestors 'self'"
        headers = {"Content-Security-Policy": f"{POLICY}; {frames}", **HEADERS}
        self.headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, answered = scope["path"].rstrip("/"), _Rewritten(send, self.headers)
        if "/deep_link" in path or "/proxy=" in path:  # what is kept for other visitors, and what lies elsewhere
            await _refuse(answered, 404, "not found")
        elif scope["method"] == "GET" and SESSION.search(path):
            try:
                await self.app(scope, receive, answered)
            finally:
                self._leave(scope.get("app"), path.rpartition("/")[2])
        elif scope["method"] == "POST" and path.endswith("/upload"):
            folder = self.uploads.new()
            upload_folder.set(folder)
            try:
                await self.app(scope, receive, answered)
            finally:
                if answered.status != 200:  # too large, or its sender went away
                    shutil.rmtree(folder, ignore_errors=True)
        elif scope["method"] == "POST":
            await self._asked(scope, receive, answered)
        else:
            await self.app(scope, receive, answered)

    def _leave(self, app: Any, session: str) -> None:
        """Forgets a visitor: uploads, and what the page showed, which Gradio would keep for the next thousands."""
        self.uploads.leave(session)
        with contextlib.suppress(AttributeError, KeyError):
            app.state_holder.delete_state(session)
            del app.state_holder.session_data[session]

    async def _asked(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes on a request with a JSON body, unless it names a file that the server would have to fetch."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client is gone
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > LARGEST_BODY:
                await _refuse(send, 413, f"a request has {LARGEST_BODY // 1_000_000} MB at most; upload files")
                return
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            values = None
        paths = list(_paths(values))
        if any(map(ADDRESS.match, paths)):
            await _refuse(send, 400, "a file is needed, and no address: nothing is fetched from elsewhere")
            return
        if isinstance(values, dict) and isinstance(session := values.get("session_hash"), str):
            self.uploads.note(session, paths)
        whole = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Any:
            return whole.pop() if whole else await receive()

        await self.app(scope, again, send)


class _Rewritten:
    """Sends on what an app sends, with our headers, and of a page without the tags that lead elsewhere."""

    def __init__(self, send: Any, headers: list[tuple[bytes, bytes]]) -> None:
        self.send, self.headers = send, headers
        self.status = 0
        self.start: Any = None  # of a page, held back until its length is known
        self.body = b""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), *self.headers]
            message = {**message, "headers": headers}
            if any(name.lower() == b"content-type" and b"text/html" in value for name, value in headers):
                self.start = message
                return
        elif message["type"] == "http.response.body" and self.start is not None:
            self.body += message.get("body", b"")
            if message.get("more_body"):
                return
            page = ELSEWHERE.sub(b"", self.body)
            headers = [(name, value) for name, value in self.start["headers"] if name.lower() != b"content-length"]
            headers.append((b"content-length", str(len(page)).encode()))
            await self.send({**self.start, "headers": headers})
            self.start, message = None, {"type": "http.response.body", "body": page}
        await self.send(message)


async def _refuse(send: Any, status: int, why: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": why}).encode()})


def _paths(values: Any) -> Iterator[str]:
    """What a request's values have as `path`, at any depth."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
