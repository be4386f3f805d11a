"""Somebody else's web server: takes webhooks and answers as told."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """What a receiver got, and what it shall answer: a status a call, the last one for ever."""

    url: str = ""
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=lambda: [200])
    hangs: bool = False
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """The bodies so far."""
        return [json.loads(body) for _, body in self.calls]

    def take(self, headers: dict[str, str], body: bytes) -> int:
        self.calls.append((headers, body))
        if self.hangs:
            self.released.wait(20)
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port of the loopback interface."""
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            body = self.rfile.read(length)
            if len(body) < length:
                return  # the caller gave up in the middle: that was no delivery
            status = received.take({name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("location", "http://127.0.0.1:9/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_address[1]}/hook?a=1"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield received
    finally:
        received.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
