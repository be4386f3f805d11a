"""A model hub of one repository on this machine: as much of the protocol as huggingface_hub speaks to fetch one."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LFS = ".safetensors"


@dataclass
class Hub:
    """Serves `folder` as `repo`.

    Args:
        needs_token: answers whoever brings another one as the hub does for a gated repository.
        cuts: names of files whose first download breaks off half-way.
        damaged: names of files whose bytes are others than their checksum says.
        stalls: names of files that stop coming half-way, until `close`.
    """

    folder: Path
    repo: str
    needs_token: str | None = None
    cuts: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    stalls: set[str] = field(default_factory=set)
    stalled: threading.Event = field(default_factory=threading.Event)
    """Whether one has stopped coming."""
    _go_on: threading.Event = field(default_factory=threading.Event)
    downloads: list[tuple[str, str | None]] = field(default_factory=list)
    """(file, Range header) of every GET."""

    def __post_init__(self) -> None:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def stall(self) -> None:
        """Wait as a connection does that nothing comes through."""
        self.stalled.set()
        self._go_on.wait(60)

    def close(self) -> None:
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def names(self) -> list[str]:
        return sorted(file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file())

    def content(self, name: str) -> bytes:
        content = (self.folder / name).read_bytes()
        return content[:-1] + bytes([content[-1] ^ 1]) if name in self.damaged else content

    def entry(self, name: str) -> dict[str, object]:
        """As the tree lists it."""
        content = (self.folder / name).read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": oid}
        if name.endswith(_LFS):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        token = hub.needs_token
        if token is not None and self.headers.get("Authorization") != f"Bearer {token}":
            self._send(403, {"X-Error-Code": "GatedRepo"}, b'{"error": "restricted"}', with_body)
            return
        api = f"/api/models/{hub.repo}"
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in hub.names()]
            self._json({"id": hub.repo, "modelId": hub.repo, "sha": COMMIT, "siblings": siblings}, with_body)
        elif path.startswith(f"{api}/tree/"):
            self._json([hub.entry(name) for name in hub.names()], with_body)
        elif path.startswith(f"/{hub.repo}/resolve/"):
            self._file(path.split("/", 5)[5], with_body)
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "not found"}', with_body)

    def _file(self, name: str, with_body: bool) -> None:
        if name not in self.hub.names():
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"", with_body)
            return
        entry, content = self.hub.entry(name), self.hub.content(name)
        lfs = entry.get("lfs")
        tag = lfs["oid"] if isinstance(lfs, dict) else entry["oid"]
        asked = self.headers.get("Range")
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if with_body:
            self.hub.downloads.append((name, asked))
        if asked is None:
            stalls, cut = (with_body and name in names for names in (self.hub.stalls, self.hub.cuts))
            self._send(200, headers, content, with_body, cut=cut or stalls, stalls=stalls)
            return
        start = int(asked.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, headers, content[start:], with_body)

    def _json(self, value: object, with_body: bool) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode(), with_body)

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes,
        with_body: bool,
        cut: bool = False,
        stalls: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if stalls:
            self.wfile.flush()
            self.hub.stall()
        if cut:
            self.hub.cuts.clear()
            self.close_connection = True
