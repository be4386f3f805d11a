"""Callers that begin a request and do not go on, or do not read the answer, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from server.http import patience
from server.http.joined_writes import Http
from tests.server.api_server import eventually

LARGE, PIECE = 8 << 20, 1 << 18
GONE = threading.Event()
"""All of /large has been taken, or dropped."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the length of the body; below /late it begins to read after a while, and /large is LARGE bytes.

    The loop stands still just before, so that the reading and the look at the connection fall together.
    """
    if scope["path"] == "/large":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", b"close")]})
        for left in range(LARGE - PIECE, -1, -PIECE):
            await send({"type": "http.response.body", "body": bytes(PIECE), "more_body": left > 0})
        GONE.set()
        return
    if scope["path"] == "/late":
        await asyncio.sleep(1.2)
        time.sleep(0.7)  # noqa: ASYNC251 - on purpose
        await asyncio.sleep(0)
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(patience, "HEAD_S", 0.5)
    monkeypatch.setattr(patience, "BODY_S", 0.5)
    monkeypatch.setattr(patience, "UNREAD_S", 0.5)
    with serving() as number:
        yield number


@contextlib.contextmanager
def serving() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    # Older ones would take the legacy half of websockets by themselves, which warns when it is imported.
    server = uvicorn.Server(uvicorn.Config(app, http=Http, ws="none", log_config=None, lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        eventually(lambda: server.started, within_s=30)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        yield sock


def rest(sock: socket.socket) -> bytes:
    """All that comes until the server closes; fails after 20 s if it does not."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            data += piece
    return data


def test_a_connection_without_a_request_is_closed(port: int) -> None:
    with connected(port) as sock:
        assert rest(sock) == b""


@pytest.mark.parametrize("begun", [b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nhost: x\r\na: b"])
def test_a_head_that_does_not_end_is_answered_408(port: int, begun: bytes) -> None:
    with connected(port) as sock:
        sock.sendall(begun)
        assert rest(sock).startswith(b"HTTP/1.1 408 ")


def test_a_head_that_comes_byte_by_byte_has_no_more_time(port: int) -> None:
    with connected(port) as sock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(200):
            sock.sendall(b"a")
            time.sleep(0.02)
        pytest.fail("it was read for four seconds")


@pytest.mark.parametrize("before", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"])
@pytest.mark.parametrize("offer", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"])
def test_a_body_that_does_not_go_on_ends_the_connection(port: int, before: bytes, offer: bytes) -> None:
    with connected(port) as sock:
        sock.sendall(before + b"POST / HTTP/1.1\r\nhost: x\r\n" + offer + b"content-length: 100\r\n\r\nabc")
        if before:
            assert sock.recv(1 << 16).endswith(b"0")
        assert b" 200 " not in rest(sock)


def test_a_slow_body_that_goes_on_arrives(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 6\r\n\r\n")
        for _ in range(6):
            time.sleep(0.2)
            sock.sendall(b"a")
        assert rest(sock).endswith(b"\r\n\r\n6")


def test_a_body_that_the_server_itself_does_not_read_yet_is_waited_for(port: int) -> None:
    length = 8 << 20
    with connected(port) as sock:
        sock.sendall(
            f"POST /late HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n".encode()
        )
        sock.sendall(bytes(length))
        assert rest(sock).endswith(f"\r\n\r\n{length}".encode())


def test_a_second_request_that_does_not_end_is_closed_too(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert sock.recv(1 << 16).endswith(b"0")
        sock.sendall(b"GET / HT")
        assert rest(sock).startswith(b"HTTP/1.1 408 ")


def test_a_request_that_begins_behind_another_and_does_not_end_is_closed_too(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT")
        answers = rest(sock)
        assert answers.count(b"HTTP/1.1 200") == 1
        assert b"HTTP/1.1 408 " in answers


def test_a_kept_connection_may_rest_between_two_requests(port: int) -> None:
    with connected(port) as sock:
        for _ in range(2):
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert sock.recv(1 << 16).endswith(b"0")
            time.sleep(1.5)
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert rest(sock).endswith(b"0")


def test_a_head_has_a_size(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"a" * (patience.HEAD_BYTES + 1))
        assert rest(sock).startswith(b"HTTP/1.1 431 ")


@contextlib.contextmanager
def asking_for_much(port: int, receive_buffer: int) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # else the system takes it all
        sock.settimeout(20)
        sock.connect(("127.0.0.1", port))
        sock.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        yield sock


def test_an_answer_that_nobody_reads_ends_the_connection(port: int) -> None:
    with asking_for_much(port, 4096) as sock:
        GONE.clear()
        assert GONE.wait(10), "it was kept for ten seconds"
        assert len(rest(sock)) < LARGE


def test_an_answer_that_is_read_slowly_arrives(port: int) -> None:
    with asking_for_much(port, 1 << 17) as sock:
        length = 0
        while piece := sock.recv(1 << 20):
            length += len(piece)
            time.sleep(0.05)
        assert length > LARGE


def is_served(port: int) -> bool:
    with connected(port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return rest(sock).endswith(b"0")


def test_connections_leave_descriptors_for_everything_else(port: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, ((len(os.listdir("/proc/self/fd")) + 20) * 4 // 3, hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(20):  # a descriptor at each end
                sock = stack.enter_context(connected(port))
                sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                if sock.recv(1 << 16).startswith(b"HTTP/1.1 503 "):
                    break
            else:
                pytest.fail("all were taken")
        eventually(lambda: is_served(port))  # there is room again
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
