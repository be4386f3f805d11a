"""A proxy in front of fal, or of any server that speaks its API, which keeps what it passes on: an ASGI app.

It is reached as this server is, in all of fal's ways (see `server.gateway.areas`), so that clients are pointed at it by
the same lines. Every header goes through and none is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from server.api.paths import endpoint_id, follow_up
from server.conform.areas import Areas
from server.gateway.areas import Area, Target, resolve_target
from server.gateway.origins import Own
from server.http.errors import PlainError
from server.settings import is_loopback
from server.shadow.asking import End, end_of, end_of_stream, follow
from server.shadow.keeping import Keeper, fetching, nothing
from server.shadow.recording import Entry, Mode, Recording

METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]
LAST_S = 10.0
"""How long a stop waits for the ends of requests that were passed on."""
_NOT_PASSED_ON = frozenset(
    {
        "host", "content-length", "connection", "keep-alive", "transfer-encoding", "te", "upgrade", "accept-encoding",
        "content-encoding", "date", "server", "proxy-authorization", "proxy-authenticate", "x-fal-target-url",
    }
)  # fmt: skip
"""Of one connection, not of the request; and answers are asked for as they are, so that they can be read."""


class Recorder:
    """Args: areas: where requests go. on_entry: told of everything that was kept. on_loss: told in a sentence of what
    could not be, as on a full disk: the request itself goes on."""

    def __init__(
        self,
        areas: Areas,
        recording: Recording,
        on_entry: Callable[[Entry], None],
        on_loss: Callable[[str], None],
    ) -> None:
        self._areas = areas
        self._recording = recording
        self._on_entry = on_entry
        self._on_loss = on_loss
        self._tasks: set[asyncio.Task[None]] = set()
        self._http: httpx.AsyncClient

    def app(self) -> Starlette:
        """What a listener serves."""
        return Starlette(routes=[Route("/{path:path}", self._pass_on, methods=METHODS)], lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=httpx.Timeout(None, connect=10), limits=limits) as self._http:
            yield
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=LAST_S)
                for task in late:
                    task.cancel()

    async def _pass_on(self, request: Request) -> Response:
        began, asked_at = time.perf_counter(), datetime.now(UTC).isoformat()
        if not is_loopback(urlsplit(request.headers.get("origin", "http://localhost")).hostname or ""):
            return JSONResponse({"detail": "fluxserve record is for programs, and pages, of this machine"}, 403)
        try:
            target = resolve_target(request.scope, Own())
            address = self._address(target)
        except PlainError as exc:
            return JSONResponse(exc.body, exc.status)
        body = await request.body()
        headers = [(name, value) for name, value in request.headers.items() if name not in _NOT_PASSED_ON]
        headers.append(("accept-encoding", "identity"))
        sent = self._http.build_request(request.method, address, headers=headers, content=body)
        try:
            answer = await self._http.send(sent, stream=True)
        except httpx.HTTPError as exc:
            return JSONResponse({"detail": f"the recorded server does not answer: {type(exc).__name__}"}, 502)
        keep = self._keeping(request, target, body, began, asked_at)
        returned = [(name, value) for name, value in answer.headers.multi_items() if name not in _NOT_PASSED_ON]
        response = await self._answered(answer, target, keep)
        response.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in returned]
        return response

    def _address(self, target: Target) -> str:
        """Where a call goes. Raises: PlainError for what is not fal's."""
        query = f"?{target.query.decode('latin-1')}" if target.query else ""
        if target.area is Area.CDN:
            base = self._areas.cdn.removesuffix("/cdn") if target.path.startswith("/files/") else self._areas.cdn
        elif target.area in (Area.RUN, Area.QUEUE, Area.REST):
            base = {Area.RUN: self._areas.run, Area.QUEUE: self._areas.queue, Area.REST: self._areas.rest}[target.area]
        else:
            raise PlainError(404, "fluxserve record passes on fal's run, queue, storage and files; nothing else")
        return f"{base}{target.path}{query}"

    async def _answered(self, answer: httpx.Response, target: Target, keep: Keep | None) -> Response:
        kind = answer.headers.get("content-type", "")
        if kind.startswith("application/json") or (keep is not None and not kind.startswith("text/event-stream")):
            await answer.aread()
            await answer.aclose()
            if keep is not None:
                self._begin(keep(answer, None))
            return Response(self._led_back(answer.content, target), answer.status_code)
        return StreamingResponse(self._passed_on(answer, keep), answer.status_code)

    async def _passed_on(self, answer: httpx.Response, keep: Keep | None) -> AsyncIterator[bytes]:
        """An answer as it comes; what a request streams is kept when it has ended."""
        seen = bytearray()
        try:
            async for piece in answer.aiter_raw():
                if keep is not None:
                    seen += piece
                yield piece
        finally:
            await answer.aclose()
            if keep is not None:
                self._begin(keep(answer, seen.decode("utf-8", "replace")))

    def _led_back(self, body: bytes, target: Target) -> bytes:
        """Follow-up addresses lead here, under the name by which the caller came."""
        return body.replace(f'"{self._areas.queue}/'.encode(), f'"{target.base}/'.encode())

    def _keeping(self, request: Request, target: Target, body: bytes, began: float, asked_at: str) -> Keep | None:
        """What is to be done with the answer; None for calls that ask for no work."""
        if request.method != "POST" or target.area not in (Area.RUN, Area.QUEUE) or follow_up(target.path):
            return None
        endpoint = endpoint_id(target.path)
        mode: Mode = "queue" if target.area is Area.QUEUE else "run"
        if mode == "run" and endpoint.endswith("/stream"):
            mode, endpoint = "stream", endpoint.removesuffix("/stream")
        headers = {"authorization": key} if (key := request.headers.get("authorization")) else {}

        async def keep(answer: httpx.Response, streamed: str | None) -> None:
            took = time.perf_counter() - began
            end = end_of(answer) if streamed is None else end_of_stream(answer.status_code, streamed)
            queued = end.answer.get("request_id") if mode == "queue" and isinstance(end.answer, dict) else None
            if isinstance(queued, str):
                try:
                    end, took = await follow(self._http, self._areas, endpoint, queued, headers, began)
                except httpx.HTTPError as exc:
                    end = End(0, {"detail": f"its end was not seen: {type(exc).__name__}"})
            await self._keep(
                Entry(endpoint, mode, asked_at, took, end.inference, end.status, None, None), body, end, headers
            )

        return keep

    async def _keep(self, entry: Entry, body: bytes, end: End, headers: dict[str, str]) -> None:
        fetch = fetching(self._http, httpx.URL(self._areas.run), headers) if entry.is_good else nothing
        keeper = Keeper(self._recording, fetch)
        try:
            asked = orjson.loads(body or b"{}")
        except orjson.JSONDecodeError:
            asked = None
        whole = Entry(
            entry.endpoint, entry.mode, entry.asked_at, round(entry.seconds, 4), entry.inference, entry.status,
            await keeper.kept(asked), await keeper.kept(end.answer),
        )  # fmt: skip
        self._recording.keep(whole)
        self._on_entry(whole)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_kept)

    def _note_kept(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()) is not None:
            self._on_loss(f"a request was not recorded: {getattr(fault, 'strerror', None) or type(fault).__name__}")


Keep = Callable[[httpx.Response, str | None], Coroutine[Any, Any, None]]
