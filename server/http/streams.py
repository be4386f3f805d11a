"""Work that belongs to one open connection: it ends when the caller leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

PING_S = 15.0
"""A silent event stream says so this often, so that proxies keep it open."""

_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # reverse proxies buffer otherwise
]


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`. Raises: ClientDisconnect, with `work` cancelled, when the caller leaves first.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _abandon(task, gone)


async def send_events(receive: Receive, send: Send, events: AsyncGenerator[bytes, None]) -> None:
    """Answer with a server-sent event stream, unbuffered, with a comment after PING_S of silence.

    Nothing is sent before the first event or ping, so an error that `events` raises at once still gets its status.
    Raises: ClientDisconnect when the caller leaves.
    """
    await while_connected(receive, _send_events(send, events))


def event(data: bytes) -> bytes:
    """One event of one JSON value. The JSON must be ASCII: JS clients cut multi-byte characters between chunks."""
    return b"data: " + data + b"\n\n"


class EventResponse(Response):
    """The same as an answer of a route. Before the first event, errors are for the handlers around the route."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_events(receive, send, self._events)


async def _send_events(send: Send, events: AsyncGenerator[bytes, None]) -> None:
    has_started = False
    upcoming = asyncio.ensure_future(_next(events))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=PING_S)
            chunk = upcoming.result() if upcoming.done() else b": ping\n\n"
            if not has_started:
                await send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
                has_started = True
            await send({"type": "http.response.body", "body": chunk or b"", "more_body": chunk is not None})
            if chunk is None:
                return
            if upcoming.done():
                upcoming = asyncio.ensure_future(_next(events))
    finally:
        await _abandon(upcoming)
        await events.aclose()


async def _next(events: AsyncGenerator[bytes, None]) -> bytes | None:
    """The next chunk; None at the end."""
    return await anext(events, None)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _abandon(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs and wait until it has really ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
