"""The HTTP application: fal's areas and our own pages around one node."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import httpx
import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.api import catalogue, wire
from server.api.errors import InputError, problem, to_wire
from server.api.v1 import shaped_response
from server.files.uploads import Uploads
from server.gateway.areas import Area
from server.gateway.gateway import Gateway
from server.gateway.guard import Guard
from server.gateway.key_file import KeyFile
from server.gateway.origins import Own
from server.gateway.tokens import Tokens
from server.http.errors import PlainError, WireError
from server.http.outgoing import VettedTransport, parse_networks
from server.http.pacing import Lanes
from server.http.running import own_address
from server.jobs.signing import Signer
from server.jobs.tracing import Tracing, open_tracing
from server.jobs.webhooks import Webhooks
from server.routes.fal.files import FilesArea
from server.routes.fal.queue import QueueArea
from server.routes.fal.realtime import RealtimeArea
from server.routes.fal.rest import RestArea
from server.routes.fal.run import RunArea
from server.routes.fal.uploads import UploadArea
from server.routes.mcp.area import McpArea
from server.routes.openai import openai_router
from server.routes.openai_pictures import openai_pictures_router
from server.routes.system.accounts import accounts_router
from server.routes.system.controls import controls_router
from server.routes.system.keys import keys_router
from server.routes.system.metrics import Metrics
from server.routes.system.nodes import nodes_router
from server.routes.system.pages import reference, system_router
from server.routes.system.platform import platform_router
from server.routes.system.workers import workers_router
from server.routes.web.clients import clients_router
from server.routes.web.pages import assets, pages_router
from server.settings import VERSION
from server.workers.gpus import Gpus

if TYPE_CHECKING:
    from server.node import Node


LAST_TRACES_S = 2.0
"""How long the end waits for a collector to take the last traces."""


def create_app(node: Node, plain_port: int | None = None) -> Gateway:
    """An ASGI app that serves `node` and owns its life: the lifespan starts and stops it.

    Args: plain_port: where plain HTTP listens, for addresses of files; without it they follow the caller alone.
    """
    node.membership.url = node.settings.public_url or own_address(node.settings.host, plain_port)
    gpus = Gpus([device for worker in node.workers for device in worker.device.split(",")])
    metrics = Metrics(lambda: node.health(), node.store, gpus)
    node.jobs.live.on_end(metrics.jobs.note_end)
    tracing = open_tracing(node.store.get, node.jobs.live)
    if tracing is not None:
        node.jobs.live.on_end(tracing.note_end)
    keys = node.keys
    tokens = Tokens.of(node.settings.data_dir)
    guard = Guard(keys, tokens)
    signer = Signer.of(node.settings.data_dir)
    uploads = Uploads(node.objects, node.settings.data_dir / "uploads", node.settings.retention_s)
    sign = node.objects.signed
    upload_area = UploadArea(uploads, tokens, guard, node.jobs.allowance, sign)

    async def whole_app(scope: Scope, receive: Receive, send: Send) -> None:
        await gateway(scope, receive, send)

    mcp = McpArea(whole_app)
    pages = FastAPI(
        title="fluxserve",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(node, signer, mcp, tracing),
    )
    pages.include_router(system_router(lambda: node.health(), node.served, metrics, VERSION, keys))
    pages.include_router(workers_router(node.workers))
    pages.include_router(nodes_router(node.membership))
    pages.include_router(accounts_router(node.jobs, node.prices, node.objects))
    pages.include_router(controls_router(node.jobs))
    pages.include_router(keys_router(KeyFile(node.settings.key_file), keys, node.jobs))
    pages.include_router(platform_router(node.served, VERSION, keys))
    pages.include_router(clients_router(node.settings, keys))
    pages.include_router(pages_router(plain=reference, files_from=lambda: node.objects.direct_origin))
    pages.include_router(openai_router(node.jobs, node.served))
    pages.include_router(openai_pictures_router(node.jobs, node.served, node.inputs))
    document = cache(partial(_openapi, pages))
    pages.router.routes += [
        Route("/mcp", mcp),
        Route("/openapi.json", lambda _: Response(document(not keys.is_open), media_type="application/json")),
        assets(),
    ]
    for kind in (WireError, HTTPException, RequestValidationError, Exception):
        pages.add_exception_handler(kind, _error)
    large = Lanes(1)
    gateway = Gateway(
        pages,
        areas={
            Area.RUN: RunArea(node.jobs, node.served),
            Area.QUEUE: QueueArea(node.jobs, node.served, guard),
            Area.REST: RestArea(tokens, signer, sign),
            Area.CDN: FilesArea(node.objects, upload_area, guard),
        },
        realtime=RealtimeArea(node.jobs, node.served, guard, large),
        guard=guard,
        own=Own(node.settings.public_url, plain_port),
        observe=metrics.observe,
        large=large,
    )
    return gateway


def _lifespan(node: Node, signer: Signer, mcp: McpArea, tracing: Tracing | None) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await node.start()
        transport = VettedTransport(parse_networks(node.settings.allow_private_cidrs))
        # No time limit of the client's: the sender limits each try as a whole.
        client = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False, timeout=None)
        outbox_sender = asyncio.create_task(
            Webhooks(node.store, signer, client, partial(wire.webhook_body, sign=node.objects.signed)).run(),
            name="webhooks",
        )
        try:
            async with mcp.lifespan():
                yield
        finally:
            outbox_sender.cancel()
            await asyncio.gather(outbox_sender, return_exceptions=True)
            await node.stop()
            if tracing is not None:
                # A daemon: the process would wait for any other thread, however long a dead collector takes.
                closing = threading.Thread(target=tracing.close, daemon=True)
                closing.start()
                await asyncio.to_thread(closing.join, LAST_TRACES_S)

    return lifespan


async def _error(request: Request, exc: Exception) -> Response:
    return shaped_response(_as_wire(exc), request.scope["path"])


def _as_wire(exc: Exception) -> WireError:
    """Also what the framework itself raises for unknown paths, wrong methods and wrong queries."""
    if isinstance(exc, HTTPException):
        return PlainError(exc.status_code, str(exc.detail), exc.headers)
    if isinstance(exc, RequestValidationError):
        return InputError([problem(_field(entry["loc"]), entry["msg"], entry["type"]) for entry in exc.errors()])
    return to_wire(exc)


def _field(loc: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The place below the body; of a query the name alone, behind which pydantic puts a type."""
    return loc[1:2] if loc[:1] == ("query",) else loc[1:]


def _openapi(pages: FastAPI, is_protected: bool) -> bytes:
    """fal's areas from the endpoint table, our own pages as FastAPI describes them. Made once, as anybody may ask."""
    own = FastAPI.openapi(pages)
    document = catalogue.openapi(catalogue.all_endpoints(), pages.title, pages.version, is_protected)
    document["paths"] |= own["paths"]
    document["components"]["schemas"] |= own.get("components", {}).get("schemas", {})
    return orjson.dumps(document)
