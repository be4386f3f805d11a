"""`/mcp`: the Model Context Protocol over streamable HTTP, on the same port and with the same keys as everything else.

The `mcp` package is an optional extra and takes half a second to import, so it is loaded at the first call.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.extras import how_to_install
from server.api.body import TOO_MANY, is_crowded, read_bytes
from server.http.errors import PlainError
from server.http.peers import is_loopback_peer

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

NOT_INSTALLED = f"MCP needs an optional package: {how_to_install('mcp')}, then start the server again"
MAX_MESSAGE_BYTES = 4 << 20
"""As the library has it."""
_BY_PROXIES = ("forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-proto")


async def _message(request: Request) -> bytes:
    """What was posted: the library bounds its bytes alone, and logs a traceback for a caller who goes meanwhile.

    Raises: PlainError 413, 415; ClientDisconnect."""
    data = await read_bytes(request, MAX_MESSAGE_BYTES)
    if is_crowded(data):
        raise PlainError(413, f"The message holds {TOO_MANY}")
    return data


def _again(data: bytes, receive: Receive) -> Receive:
    """What brings a body that was read already, and then what comes after it."""
    ready: list[Message] = [{"type": "http.request", "body": data, "more_body": False}]

    async def next_message() -> Message:
        return ready.pop() if ready else await receive()

    return next_message


class McpArea:
    """ASGI app of `/mcp`.

    Args: app: the whole server, to which the tools' own calls go, in process.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._start_lock = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if importlib.util.find_spec("mcp") is None:
            raise PlainError(501, NOT_INSTALLED)
        async with self._start_lock:
            self._manager = self._manager or await self._start()
        if scope["method"] == "POST":
            receive = _again(await _message(Request(scope, receive)), receive)
        await self._manager.handle_request(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Close what the first call opened."""
        try:
            yield
        finally:
            self._stop.set()
            if self._running is not None:
                await self._running

    async def _start(self) -> StreamableHTTPSessionManager:
        manager = await asyncio.to_thread(self._make_manager)
        is_up = asyncio.Event()

        async def run() -> None:
            # Its task group must be left by the task that entered it.
            async with manager.run():
                is_up.set()
                await self._stop.wait()

        self._running = asyncio.create_task(run(), name="mcp")
        await is_up.wait()
        return manager

    def _make_manager(self) -> StreamableHTTPSessionManager:
        from mcp.server.transport_security import TransportSecuritySettings

        from server.routes.mcp.tools import make_server

        server = make_server(self._client)
        # Stateless: after a restart of the server an agent goes on as before. Keys protect this server, not host
        # names, of which it has many.
        server.streamable_http_app(
            stateless_http=True,
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )
        return server.session_manager

    def _client(self, ctx: Context[Any, Any]) -> httpx.AsyncClient:
        """Calls this very server as the agent's own client would, by the name under which the agent came."""
        request = ctx.request_context.request
        assert isinstance(request, Request), "streamable HTTP carries the request"
        # What a proxy on this machine says of the agent counts for our own call as it does for the agent's.
        names = ("authorization", "host", *(_BY_PROXIES if is_loopback_peer(request.scope) else ()))
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self._app),
            base_url=f"{request.scope['scheme']}://localhost",
            headers={name: request.headers[name] for name in names if name in request.headers},
            timeout=None,
        )
