"""The outermost layer: finds the area of every request, checks the key, and answers every error in fal's shape.

Every poll passes here, so what is the same for all answers is made once, and what only some need is made for those.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import to_wire
from server.api.v1 import shaped_response
from server.gateway import cors
from server.gateway.areas import Area, Target, resolve_target
from server.gateway.guard import Guard
from server.gateway.guesses import peer_of
from server.gateway.keys import ANYBODY
from server.gateway.origins import Own
from server.http.errors import PlainError, WireError
from server.http.pacing import LARGE, Lanes
from server.http.peers import is_local_caller

Observe = Callable[[str, str, int, float], None]
"""Called with (area, method, status, seconds) of every answer."""

log = logging.getLogger("fluxserve.http")

LEFT = 499
"""Counted as the status of a request whose caller left before the answer began."""

REFUSED = 1008
"""WebSocket close code; before the handshake it is sent as HTTP 403."""

LOGGED_PATH = 120
"""Characters of a path in the log: no address of a request is longer, and the permission in an upload's is cut."""

_WITH_JSON = (Area.RUN, Area.QUEUE, Area.SYSTEM)

_OPEN_SYSTEM_PATHS = frozenset(
    {
        "", "/livez", "/readyz", "/docs", "/openapi.json", "/favicon.ico", "/llms.txt", "/api/models", "/playground",
        "/history", "/keys",
    }
)  # fmt: skip
_OPEN_SYSTEM_FOLDERS = ("/models/", "/api/models/", "/playground/", "/ui/")
"""What /docs says anyway: clients ask fal's site and Hugging Face's hub for it, and bring those no key of ours.
And the pages for people, which hold nothing until they are given a key."""
_OPEN_TO_LOCAL_CALLERS = frozenset({"/health", "/metrics"})


class Gateway:
    """ASGI app: `areas` get the requests that are fal's, `pages` those for our own pages, and the lifespan.

    `realtime` gets every WebSocket. An area sees a scope with the inner path, the Target under `"target"`
    and the Caller under `"caller"`. `large`: turns of large bodies, which messages of WebSockets take, too.
    """

    def __init__(
        self,
        pages: ASGIApp,
        areas: Mapping[Area, ASGIApp],
        realtime: ASGIApp,
        guard: Guard,
        own: Own,
        observe: Observe,
        large: Lanes,
    ) -> None:
        self._pages = pages
        self._areas = {**areas, Area.SYSTEM: pages}
        self._realtime = realtime
        self._observe = observe
        self._guard = guard
        self._own = own
        self._refusals = Lanes(1)
        self._large = large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, _Answer(send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._pages(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        began = time.perf_counter()
        try:
            await self._dispatch(scope, receive, answer)
        except ClientDisconnect:
            log.debug("client left %s %s", scope["method"], scope["path"])
        except Exception as exc:
            answer.request_id = answer.request_id or str(uuid.uuid4())
            wire = self._explain(exc, scope, answer)
            if wire.status == 429:
                # Who has too much already is answered a hundred times a second, however often he asks.
                await self._refusals.pause(answer.whose or peer_of(scope, Headers(scope=scope)))
            if not answer.has_started:
                await shaped_response(wire, scope["path"])(scope, receive, answer.send)
            elif not answer.has_ended:  # our own pages raise what they have answered already
                raise
        finally:
            self._observe(answer.area, scope["method"], answer.status, time.perf_counter() - began)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            target = resolve_target(scope, self._own)
        except WireError:
            await send({"type": "websocket.close", "code": REFUSED})
            return
        await self._realtime({**scope, "target": target}, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        if scope["method"] == "OPTIONS":
            await cors.preflight(headers)(scope, receive, answer.send)
            return
        target = resolve_target(scope, self._own)
        answer.area = target.area
        answer.request_id = target.request_id
        caller = ANYBODY if _is_open(target, scope, headers) else self._guard.check(target, scope, headers)
        answer.whose = caller.tenant
        self._large.note(caller.tenant)
        if target.area in _WITH_JSON and _may_be_large(headers):
            receive = self._at_a_pace(caller.tenant, receive)
        path = target.path or "/"
        changes = {
            "path": path,
            "raw_path": path.encode(),
            "query_string": target.query,
            "target": target,
            "caller": caller,
        }
        if scope["method"] == "HEAD" and _has_head(target):
            changes["method"] = "GET"  # the listener, which knows better, sends no body
        inner = {**scope, **changes}
        app = self._areas.get(target.area)
        if app is None:
            raise PlainError(404, "Path not found")
        await app(inner, receive, answer.send)

    def _at_a_pace(self, whose: str, receive: Receive) -> Receive:
        """The same body; a large one is read on when its key may go on, and what comes of it is counted."""
        taken = 0

        async def next_message() -> Message:
            nonlocal taken
            message = await receive()
            came = len(message.get("body", b""))
            is_first, taken = taken <= LARGE, taken + came
            if taken > LARGE and is_first:
                async with self._large.turn(whose, taken / LARGE):
                    pass
            elif taken > LARGE:
                self._large.charge(whose, came / LARGE)
            return message

        return next_message

    def _explain(self, exc: Exception, scope: Scope, answer: _Answer) -> WireError:
        wire = to_wire(exc)
        if wire.status >= 500:
            # A refusal that was foreseen needs no traceback, and on a full disk there are many.
            unforeseen = exc if wire.status == 500 else None
            request = scope["method"], scope["path"][:LOGGED_PATH], answer.request_id
            log.error("%s %s request_id=%s: %s", *request, exc, exc_info=unforeseen)
        return wire


class _Answer:
    """The way out: adds the headers that every answer has."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.request_id: str | None = None
        self.area = "none"
        self.whose = ""
        self.status = LEFT
        self.has_ended = False

    @property
    def has_started(self) -> bool:
        return self.status != LEFT

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *cors.OPEN]
            if self.request_id is not None:
                headers.append((b"x-fal-request-id", self.request_id.encode()))
            message["headers"] = headers
        elif not message.get("more_body", False):
            self.has_ended = True
        await self._send(message)


def _may_be_large(headers: Headers) -> bool:
    length = headers.get("content-length", "")
    return "transfer-encoding" in headers or (length.isdecimal() and int(length[:20]) > LARGE)


def _has_head(target: Target) -> bool:
    """Whether HEAD is GET without its body: everywhere but for files, which need not be read, and endless streams."""
    is_stream = target.follow_up is not None and target.follow_up.action == "status/stream"
    return target.area is not Area.CDN and not is_stream


def _is_open(target: Target, scope: Scope, headers: Headers) -> bool:
    """Whether this may be asked without a key: health for orchestrators, files and keys that are public on fal."""
    if target.area is Area.CDN:
        return True  # reads are public; writes carry their own secret
    if target.area is Area.REST:
        return target.path == "/.well-known/jwks.json"
    if target.area is Area.SYSTEM:
        is_for_local = target.path in _OPEN_TO_LOCAL_CALLERS and is_local_caller(scope, headers)
        return is_for_local or target.path in _OPEN_SYSTEM_PATHS or target.path.startswith(_OPEN_SYSTEM_FOLDERS)
    return False
