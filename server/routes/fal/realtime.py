"""WebSockets: inputs and results over one socket, in order; realtime in msgpack or JSON, or HTTP's frames as JSON.

Every input is an ephemeral job. Inputs that come faster than they are drawn wait in a short line, from which the
oldest fall out; a result has the encoding of its question.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

import msgpack
import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from server.api import endpoints, wire
from server.api.endpoints import Endpoint
from server.api.errors import InputError, to_wire
from server.api.messages import Message
from server.api.served import Served
from server.api.submission import RequestOptions, new_job
from server.gateway.areas import Area, Target
from server.gateway.guard import Guard
from server.gateway.keys import UNKNOWN_KEY, Caller
from server.http.errors import PlainError, WireError
from server.http.pacing import LARGE, Lanes
from server.jobs.service import JobService

IDLE_S = 60.0
"""A socket on which nothing happens for this long is closed; clients open it again at the next input."""
MAX_BUFFERING = 60
_PATHS: dict[Area, tuple[str, ...]] = {Area.RUN: ("realtime", ""), Area.WS: ("",)}
"""The app's own routes that are sockets, by area."""

ERROR = "x-fal-error"
NORMAL_CLOSE = 1000
REFUSED = 1008


class RealtimeArea:
    """ASGI app for WebSockets. Args: large: turns of large messages, and of large bodies elsewhere."""

    def __init__(self, jobs: JobService, served: Served, guard: Guard, large: Lanes) -> None:
        self._jobs = jobs
        self._served = served
        self._guard = guard
        self._large = large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target: Target = scope["target"]
        socket = WebSocket(scope, receive, send)
        try:
            endpoint = self._endpoint(target)
        except PlainError:
            await socket.close(REFUSED)
            return
        await socket.accept()
        try:
            caller = self._guard.check(target, scope, Headers(scope=scope))
        except PlainError:
            # After accepting: then JS drops its token and fetches a new one at the next input.
            await socket.send_text('{"status":"error","error":"Unauthorized"}')
            await socket.close(NORMAL_CLOSE)
            return
        session = HttpSession if target.area is Area.WS else Session
        shared = self._jobs, self._served, self._guard, self._large
        await session(*shared, socket, target, caller, endpoint, IDLE_S).run()

    @staticmethod
    def _endpoint(target: Target) -> Endpoint:
        endpoint, rest = endpoints.find(target.path)
        paths = _PATHS.get(target.area, ())
        if rest not in paths:
            raise endpoints.path_not_found(rest)
        return endpoint


@dataclass
class Session:
    """One open socket: a reader fills the line, a writer empties it."""

    jobs: JobService
    served: Served
    guard: Guard
    large: Lanes
    socket: WebSocket
    target: Target
    caller: Caller
    endpoint: Endpoint
    idle_s: float
    line: deque[Message] = field(init=False)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    is_binary: bool = False

    def __post_init__(self) -> None:
        self.line = deque(maxlen=_max_buffering(self.target.query))

    async def run(self) -> None:
        """Until the client leaves or nothing happens for too long."""
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._answer_all())
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, writer):
                task.cancel()
            ends = await asyncio.gather(reader, writer, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, WebSocketDisconnect):
                raise end

    async def _read(self) -> None:
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes")
            content = data if data is not None else message["text"].encode("utf-8", "replace")
            await self._take_turn(len(content))
            self.line.append(Message(content, is_binary=data is not None))
            self.arrived.set()
            # Messages of one packet are all there already: without a turn for the writer the first, for which it is
            # free, would fall out of a short line.
            await asyncio.sleep(0)

    async def _take_turn(self, size: int) -> None:
        """Return when the key may have a message of so many bytes parsed; meanwhile no other is read."""
        if size <= LARGE:
            self.large.note(self.caller.tenant)
            return
        async with self.large.turn(self.caller.tenant, size / LARGE):
            pass

    async def _answer_all(self) -> None:
        while await self._next_arrived():
            while self.line:
                await self.reply(self.line.popleft())
        await self.part()
        await self.socket.close(NORMAL_CLOSE)

    async def reply(self, wanted: Message) -> None:
        """Answer one message in its own encoding."""
        self.is_binary = wanted.is_binary
        await self._send(await self._answer(wanted))

    async def part(self) -> None:
        """Say why the socket will be closed now."""
        await self._send(_error("TIMEOUT", f"Nothing was sent for {self.idle_s:g} seconds"))

    async def _next_arrived(self) -> bool:
        """Wait for an input; False after idle_s without one."""
        try:
            async with asyncio.timeout(self.idle_s):
                await self.arrived.wait()
        except TimeoutError:
            return False
        self.arrived.clear()
        return True

    async def _answer(self, wanted: Message) -> dict[str, Any]:
        """The result of one input, or fal's error message; the socket stays usable."""
        try:
            return await self._draw(wanted.decode())
        except InputError as exc:
            first = exc.problems[0]
            where = ".".join(str(part) for part in first["loc"][1:])
            return _error("INVALID_INPUT", f"{where}: {first['msg']}" if where else str(first["msg"]))
        except Exception as exc:
            failure = to_wire(exc)
            return _error(str(failure.body.get("error_type", "error")).upper(), _text(failure))

    async def _draw(self, body: dict[str, Any]) -> dict[str, Any]:
        status, result, headers = await self.draw(body, str(uuid.uuid4()))
        if status != 200:
            raise WireError(status, result, headers)
        return result

    async def draw(self, body: dict[str, Any], request_id: str) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, body and headers of one input's end. Raises: InputError, PlainError 401 for a key that has ended."""
        if not self.guard.still_admits(self.caller):
            raise PlainError(401, UNKNOWN_KEY)
        options = RequestOptions(self.caller.tenant, key_id=self.caller.key)
        new = new_job(self.endpoint, request_id, body, options, self.served, is_ephemeral=True)
        return wire.result(await self.jobs.run(new), self.target.files, self.jobs.sign)

    async def _send(self, body: dict[str, Any]) -> None:
        # Errors are always text: only there does fal_client raise them instead of returning them.
        if self.is_binary and body.get("type") != ERROR:
            await self.socket.send_bytes(msgpack.packb(body))
        else:
            await self.socket.send_text(orjson.dumps(body).decode())


class HttpSession(Session):
    """HTTP over a WebSocket, as `fal.apps` speaks it in the WS area: for each input a start, a body, an end."""

    async def reply(self, wanted: Message) -> None:
        request_id = str(uuid.uuid4())
        began = time.monotonic()
        try:
            status, body, headers = await self.draw(wanted.decode(), request_id)
        except Exception as exc:
            failure = to_wire(exc)
            status, body, headers = failure.status, failure.body, failure.headers
        frame = {"request_id": request_id, "status": status}
        head = {"content-type": "application/json", "x-fal-request-id": request_id} | headers
        first_byte_s = time.monotonic() - began
        await self._send({"type": "start"} | frame | {"headers": head})
        await self._send(body)
        await self._send({"type": "end"} | frame | {"time_to_first_byte_seconds": first_byte_s})

    async def part(self) -> None:
        """Nothing: every frame belongs to a request."""


def _max_buffering(query: bytes) -> int:
    """How many inputs may wait, as the client asks: 1 to 60."""
    text = parse_qs(query.decode("latin-1")).get("max_buffering", [""])[-1]
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        return MAX_BUFFERING
    return min(max(int(text), 1), MAX_BUFFERING)


def _error(code: str, reason: str) -> dict[str, Any]:
    return {"type": ERROR, "error": code, "reason": reason}


def _text(failure: WireError) -> str:
    detail = failure.body.get("detail")
    return detail if isinstance(detail, str) else str(detail[0]["msg"]) if detail else "The request failed"
