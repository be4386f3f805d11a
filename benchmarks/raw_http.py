"""HTTP/1.1 over one kept connection with next to no cost: a load generator must not be what is measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

OnAnswer = Callable[[int, bytes], None]
"""(status, body)"""


def request(method: str, path: str, host: str, body: bytes | None = None) -> bytes:
    """One request as it goes over the wire."""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + (body or b"")


class Connection(asyncio.Protocol):
    """Asks one thing at a time. Answers must have a Content-Length, as those of a JSON API have."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None
        self._on_answer: OnAnswer | None = None

    @classmethod
    async def open(cls, host: str, port: int) -> Connection:
        """Connected. Raises: OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    def ask(self, data: bytes, on_answer: OnAnswer) -> None:
        """Send a request; its answer is handed over, status 0 if the server hangs up instead."""
        assert self._transport is not None, "not connected"
        self._on_answer = on_answer
        self._transport.write(data)

    async def fetch(self, data: bytes) -> tuple[int, bytes, float]:
        """Status, body and seconds of one request."""
        answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()

        def take(status: int, body: bytes) -> None:
            if not answered.done():  # who asked may have been cancelled meanwhile
                answered.set_result((status, body))

        self.ask(data, take)
        status, body = await answered
        return status, body, time.perf_counter() - began

    def close(self) -> None:
        self._on_answer = None
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        start = head.index(b"content-length:") + 15
        length = int(head[start : start + 12].split(b"\r", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
        self._answer(int(head[9:12]), body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._answer(0, b"")

    def _answer(self, status: int, body: bytes) -> None:
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(status, body)


class EventStream(asyncio.Protocol):
    """One server-sent event stream; every event's data is handed over as it arrives, None at the end."""

    def __init__(self, ask: bytes, on_data: Callable[[bytes | None], None]) -> None:
        self._ask, self._on_data, self._buffer = ask, on_data, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._ask)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        # Chunk sizes stand between events, never inside one: the server sends each in one piece.
        self._buffer += data
        while (end := self._buffer.find(b"\n\n")) >= 0:
            event, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
            start = event.find(b"data: ")
            if start >= 0:
                self._on_data(event[start + 6 :])
        if self._buffer.endswith(b"\r\n0\r\n\r\n"):
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_data(None)
