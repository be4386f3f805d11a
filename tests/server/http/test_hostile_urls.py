"""Whatever address a request names, only what is allowed is called: pictures, adapters, webhooks, redirects."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import httpx
import pytest

from server.files.adapter_store import AdapterStore
from server.files.adapters import AdapterRefusedError, Adapters
from server.files.decoding import PictureError
from server.files.folder_objects import FolderObjects
from server.files.inputs import Inputs
from server.files.picture_pool import PicturePool
from server.http.outgoing import ForbiddenAddressError, VettedTransport, parse_networks
from tests.server.http.hostile_urls import PUBLIC, Resolver, hostile_urls

ALLOWED = parse_networks([f"{PUBLIC}/32"])


class Sentinel:
    """Stands for what is inside: listens on both loopback addresses, and counts who comes."""

    def __init__(self) -> None:
        self.hits: list[object] = []
        four = socket.create_server(("127.0.0.1", 0))
        self.port: int = four.getsockname()[1]
        self._sockets = [four, socket.create_server(("::1", self.port), family=socket.AF_INET6)]
        self._threads = [threading.Thread(target=self._accept, args=(each,)) for each in self._sockets]
        for thread in self._threads:
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            caller, where = listener.accept()
            is_the_end = caller.recv(3) == b"end"
            caller.close()
            if is_the_end:
                return
            self.hits.append(where)

    def close(self) -> None:
        for listener in self._sockets:
            with socket.create_connection(listener.getsockname()[:2]) as last:
                last.sendall(b"end")
        for thread in self._threads:
            thread.join()
        for listener in self._sockets:
            listener.close()


class Redirector(BaseHTTPRequestHandler):
    """A public site that sends its visitors to whatever the path says."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("location", unquote(self.path[1:]).encode().decode("latin-1"))
        self.send_header("content-length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture
def sentinel() -> Iterator[Sentinel]:
    made = Sentinel()
    yield made
    made.close()


@pytest.fixture
def redirector() -> Iterator[str]:
    with ThreadingHTTPServer((PUBLIC, 0), Redirector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://{PUBLIC}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that connections are made to, with names answered by the attacker."""
    seen: list[str] = []
    real = httpx.AsyncHTTPTransport.handle_async_request

    async def noting(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return await real(self, request)

    monkeypatch.setattr(socket, "getaddrinfo", Resolver())
    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", noting)
    return seen


async def read_all(urls: list[str], folder: Path) -> None:
    """As the picture and as the adapter of a request."""
    objects, pool = FolderObjects(folder / "files"), PicturePool()
    pictures = Inputs(objects, pool, ALLOWED)
    adapters = Adapters(AdapterStore(folder / "adapters", 10**9), objects, None, False, 1 << 20, ALLOWED)

    async def read(url: str) -> None:
        with pytest.raises(PictureError):
            await pictures.read(url)
        with pytest.raises(AdapterRefusedError):
            await adapters.resolve(url)

    try:
        await asyncio.gather(*map(read, urls))
    finally:
        await pictures.aclose()
        await adapters.aclose()


async def post_all(urls: list[str]) -> list[int]:
    """As the webhook of a request; the statuses of those that were answered."""
    answered: list[int] = []
    refusals = (ForbiddenAddressError, httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError)
    transport = VettedTransport(ALLOWED)
    async with httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False) as client:

        async def post(url: str) -> None:
            with contextlib.suppress(*refusals):
                answered.append((await client.post(url, content=b"{}")).status_code)

        await asyncio.gather(*map(post, urls))
    return answered


def test_no_spelling_of_an_address_leads_inside(tmp_path: Path, sentinel: Sentinel, called: list[str]) -> None:
    urls = hostile_urls(sentinel.port)
    assert len(set(urls)) >= 200
    asyncio.run(read_all(urls, tmp_path))
    asyncio.run(post_all(urls))
    assert sentinel.hits == []
    assert set(called) <= {PUBLIC}


def test_no_redirect_leads_inside(tmp_path: Path, sentinel: Sentinel, redirector: str, called: list[str]) -> None:
    urls = [f"{redirector}/{quote(url, safe='')}" for url in hostile_urls(sentinel.port) if url.startswith("http")]
    asyncio.run(read_all(urls, tmp_path))
    assert sentinel.hits == []
    assert set(called) == {PUBLIC}


def test_a_webhook_is_not_led_on_at_all(redirector: str, called: list[str]) -> None:
    assert asyncio.run(post_all([f"{redirector}/{redirector}/again"])) == [302]
    assert called == [PUBLIC]


@pytest.mark.parametrize("port", [22, 25, 110, 143, 445, 993])
def test_only_web_ports_of_public_hosts_are_called(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    public = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.215.14", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: public)

    async def go() -> None:
        async with httpx.AsyncClient(transport=VettedTransport(), trust_env=False) as client:
            await client.get(f"http://public.test:{port}/")

    with pytest.raises(ForbiddenAddressError, match=str(port)):
        asyncio.run(go())
