"""A request that offers an upgrade is served as if it had not (RFC 9110, 7.8): raw bytes over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.http.joined_writes import Http

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
SIZED = b"POST /a HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Content-Length: 5\r\n\r\n"
CHUNKED = b"POST /b HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Transfer-Encoding: chunked\r\n\r\n"
BARE = b"GET /c HTTP/1.1\r\nHost: x\r\n" + OFFER + b"\r\n"
PLAIN = b"POST /d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nend"
LAST = b"GET /e HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with method, path and body."""
    request = Request(scope, receive)
    answer = f"{request.method} {request.url.path} ".encode() + await request.body()
    await Response(answer)(scope, receive, send)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(echo, http=Http, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()


def talk(port: int, pieces: list[bytes]) -> list[bytes]:
    """What is answered, body by body, to bytes that are sent piece by piece."""

    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.02)
            return await asyncio.wait_for(reader.read(), 10)

    answers = asyncio.run(main()).split(b"HTTP/1.1 200 OK\r\n")[1:]
    return [answer.partition(b"\r\n\r\n")[2] for answer in answers]


@pytest.mark.parametrize(
    ("pieces", "bodies"),
    [
        ([SIZED + b"hello", LAST], [b"POST /a hello", b"GET /e "]),
        ([SIZED, b"he", b"llo", LAST], [b"POST /a hello", b"GET /e "]),
        ([SIZED[:70], SIZED[70:] + b"hel", b"lo", LAST], [b"POST /a hello", b"GET /e "]),
        ([CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", LAST], [b"POST /b hello", b"GET /e "]),
        ([CHUNKED, b"2\r\nhe\r\n3\r", b"\nllo\r\n0\r\n\r\n", LAST], [b"POST /b hello", b"GET /e "]),
        ([BARE, PLAIN, LAST], [b"GET /c ", b"POST /d end", b"GET /e "]),
        ([SIZED + b"hello" + PLAIN + LAST], [b"POST /a hello", b"POST /d end", b"GET /e "]),
        ([SIZED + b"hello" + CHUNKED + b"0\r\n\r\n" + LAST], [b"POST /a hello", b"POST /b ", b"GET /e "]),
    ],
    ids=["sized", "apart", "head in two", "chunked", "chunks apart", "without body", "pipelined", "two offers"],
)
def test_the_offer_is_ignored_and_the_body_kept(port: int, pieces: list[bytes], bodies: list[bytes]) -> None:
    assert talk(port, pieces) == bodies


def test_an_http_1_0_offer_is_ignored_too(port: int) -> None:
    assert talk(port, [SIZED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello"]) == [b"POST /a hello"]
