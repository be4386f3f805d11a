"""The app behind a real uvicorn in a thread: real sockets, so that streaming and disconnects are real."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import httpx
import uvicorn
from starlette.types import ASGIApp

from server.app import create_app
from server.http.sockets import SocketProtocol
from tests.server.api_node import ApiNode

if TYPE_CHECKING:
    from server.node import Node


@dataclass(frozen=True)
class Api:
    """A served node and a client for it."""

    node: ApiNode
    http: httpx.Client
    url: str

    def submit(self, endpoint: str = "fal-ai/flux/dev", **body: Any) -> str:
        """Queue a request and return its id."""
        answer = self.http.post(f"/queue/{endpoint}", json={"prompt": "a fox"} | body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["request_id"])


@contextlib.contextmanager
def serve(node: ApiNode) -> Iterator[Api]:
    """Serve a node whose worker the test plays."""
    app = create_app(cast("Node", node))
    # Not verifying: the public authorities, which plain HTTP does not need, would take most of a test's time to read.
    with listening(app) as url, httpx.Client(base_url=url, timeout=10, verify=False) as http:
        yield Api(node, http, url)


@contextlib.contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serve an app on a free port of the loopback interface, lifespan included; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        log_config=None,
        lifespan="on",
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        ws=SocketProtocol,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def eventually(holds: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait until something is true. Raises: AssertionError after `within_s`."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
