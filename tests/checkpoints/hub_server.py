"""A server on the loopback interface with the hub's layout: API, resolve addresses, a second host for files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves, how it misbehaves, and what it was asked.

    Attributes:
        repos: repository to file name to content.
        gated: repositories whose files need `token`; anybody may list them, as on the hub.
        closed: gated ones that the account of `token` has no access to.
        token: the one valid token.
        break_after: close the connection after so many bytes of a file...
        breaks: ...this many times.
        breaks_of: only of this file; None: of any.
        stall_after: send so many bytes of a file, then nothing more until the server stops.
        lie_about: file whose checksum is given wrongly.
        requests: (method, path, headers) of each request.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    token: str = "hf_valid"
    break_after: int = 0
    breaks: int = 0
    breaks_of: str | None = None
    stall_after: int | None = None
    lie_about: str | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    address: str = ""
    stopping: threading.Event = field(default_factory=threading.Event)

    def fetched(self) -> list[tuple[str, str | None]]:
        """(path, Range header) of each transfer of file content."""
        return [(path, headers.get("range")) for _, path, headers in self.requests if path.startswith("/cdn/")]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stopping.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.state.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if api := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path):
            self._model_info(api[1])
        elif cdn := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._content(cdn[2], self.state.repos[cdn[1]][cdn[2]])
        elif resolve := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._resolve(resolve[1], resolve[2])
        else:
            self._send(404, {})

    def _refuse(self, repo: str, *, files: bool) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {self.state.token}"
        if repo not in self.state.repos:
            self._send(404 if known else 401, {"X-Error-Code": "RepoNotFound"})
        elif files and repo in self.state.gated | self.state.closed and not known:
            self._send(401, {"X-Error-Code": "GatedRepo"})
        elif files and repo in self.state.closed:
            self._send(403, {"X-Error-Code": "GatedRepo"})
        else:
            return False
        return True

    def _model_info(self, repo: str) -> None:
        if self._refuse(repo, files=False):
            return
        siblings = []
        for name, content in self.state.repos[repo].items():
            sha256 = "0" * 64 if name == self.state.lie_about else hashlib.sha256(content).hexdigest()
            lfs = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            siblings.append({"rfilename": name, "size": len(content), "blobId": "b" * 40, "lfs": lfs})
        body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _resolve(self, repo: str, name: str) -> None:
        if self._refuse(repo, files=True):
            return
        content = self.state.repos[repo].get(name)
        if content is None:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        port = self.state.address.rpartition(":")[2]
        headers = {
            "Location": f"http://localhost:{port}/cdn/{repo}/{name}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        self._send(302, headers)

    def _content(self, name: str, content: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        part = content[start:]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.state.stall_after is not None:
            self._send(206 if wanted else 200, headers, part, stop_at=self.state.stall_after)
            self.state.stopping.wait()
            self.close_connection = True
        elif self.state.breaks > 0 and self.state.breaks_of in {None, name}:
            self.state.breaks -= 1
            self._send(206 if wanted else 200, headers, part, stop_at=self.state.break_after)
            self.close_connection = True
        else:
            self._send(206 if wanted else 200, headers, part)

    def _send(self, status: int, headers: dict[str, str], body: bytes = b"", stop_at: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body if stop_at is None else body[:stop_at])
            self.wfile.flush()
