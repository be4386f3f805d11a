"""The HTTP application: fal's areas and our own pages around one node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI, Request
from starlette.responses import Response

from server import catalogue
from server.areas import Area
from server.auth import KeyRing
from server.errors import WireError, to_wire
from server.gateway import Gateway
from server.guard import Guard
from server.metrics import Metrics
from server.outgoing import VettedTransport, parse_networks
from server.responses import error_response
from server.routes.files import FilesArea
from server.routes.openai import openai_router
from server.routes.queue import QueueArea
from server.routes.realtime import RealtimeArea
from server.routes.rest import RestArea
from server.routes.run import RunArea
from server.routes.system import system_router
from server.routes.uploads import UploadArea
from server.signing import Signer
from server.tokens import Tokens
from server.uploads import Uploads
from server.webhooks import Webhooks

if TYPE_CHECKING:
    from server.node import Node

VERSION = "0.1.0"


def create_app(node: Node) -> Gateway:
    """An ASGI app that serves `node` and owns its life: the lifespan starts and stops it."""
    metrics = Metrics(node)
    keys = KeyRing(node.settings.api_keys)
    tokens = Tokens.of(node.settings.data_dir)
    guard = Guard(keys, tokens)
    signer = Signer.of(node.settings.data_dir)
    uploads = Uploads(node.objects, node.settings.data_dir / "uploads", node.settings.retention_s)
    pages = FastAPI(
        title="fluxserve",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan(node, signer),
    )
    pages.include_router(system_router(node, metrics, VERSION))
    pages.include_router(openai_router(node))
    for kind in (WireError, Exception):
        pages.add_exception_handler(kind, _error)
    pages.openapi = lambda: _openapi(pages, not keys.is_open)  # type: ignore[method-assign]
    return Gateway(
        pages,
        areas={
            Area.RUN: RunArea(node),
            Area.QUEUE: QueueArea(node),
            Area.REST: RestArea(tokens, signer),
            Area.CDN: FilesArea(node, UploadArea(uploads, tokens, keys), keys),
        },
        realtime=RealtimeArea(node, guard),
        guard=guard,
        public_url=node.settings.public_url,
        observe=metrics.observe,
    )


def _lifespan(node: Node, signer: Signer) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await node.start()
        transport = VettedTransport(parse_networks(node.settings.allow_private_cidrs))
        client = httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)
        postman = asyncio.create_task(Webhooks(node.store, signer, client).run(), name="webhooks")
        try:
            yield
        finally:
            postman.cancel()
            await asyncio.gather(postman, return_exceptions=True)
            await node.stop()

    return lifespan


async def _error(_: Request, exc: Exception) -> Response:
    return error_response(to_wire(exc))


def _openapi(pages: FastAPI, is_protected: bool) -> dict[str, Any]:
    """fal's areas from the endpoint table, our own pages as FastAPI describes them."""
    own = FastAPI.openapi(pages)
    document = catalogue.openapi(catalogue.all_endpoints(), pages.title, pages.version, is_protected)
    document["paths"] |= own["paths"]
    document["components"]["schemas"] |= own.get("components", {}).get("schemas", {})
    return document
