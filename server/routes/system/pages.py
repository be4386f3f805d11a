"""Our own pages beside fal's areas: health, metrics, the model list, and the documentation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.responses import Response

from server.api import catalogue, endpoints, release
from server.api.served import Served
from server.gateway.keys import KeyRing
from server.http.errors import PlainError
from server.http.responses import json_response
from server.routes.system.docs_page import docs_page
from server.routes.system.metrics import Metrics

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def system_router(
    health: Callable[[], dict[str, Any]],
    served: Served,
    metrics: Metrics,
    version: str,
    keys: KeyRing,
) -> APIRouter:
    """The routes of the system area."""
    router = APIRouter()

    @router.get("/livez")
    async def livez() -> dict[str, str]:
        """The process answers; no device is touched."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {"description": "Not yet, or not now"}})
    async def readyz() -> Response:
        """200 when a worker is loaded, the queue accepts and the disk takes writes, else 503."""
        now = health()
        return json_response({"status": "ready" if now["ready"] else now["state"]}, 200 if now["ready"] else 503)

    @router.get("/health")
    async def health_page() -> Response:
        """State, load progress and workers."""
        return json_response(health() | {"version": version, "changelog": "/docs/changelog"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Prometheus' text format."""
        await asyncio.to_thread(metrics.read_gpus)
        return Response(metrics.text(), media_type=PROMETHEUS)

    @router.get("/api/openapi/queue/openapi.json", responses={404: {"description": "No such endpoint"}})
    async def endpoint_openapi(endpoint_id: str, request: Request) -> dict[str, Any]:
        """One endpoint's OpenAPI document, where fal has it."""
        row = endpoints.ENDPOINTS.get(endpoint_id)
        if row is None:
            raise PlainError(404, f"Application '{endpoint_id[:200]}' not found")
        origin = request.scope["target"].origin
        return catalogue.queue_openapi(row, version, not keys.is_open, origin)

    @router.get("/docs", response_class=HTMLResponse)
    async def docs(request: Request) -> HTMLResponse:
        """The endpoints and their fields as one static page."""
        return reference(request)

    @router.get("/docs/changelog", response_class=Response, responses={200: {"content": {"text/markdown": {}}}})
    def changelog() -> Response:
        """What changed, release by release, in Markdown."""
        return Response(release.changelog(), media_type="text/markdown; charset=utf-8")

    return router


def reference(request: Request) -> HTMLResponse:
    """The page of /docs, with the caller's address in its examples."""
    page = docs_page(catalogue.all_endpoints(), request.scope["target"].origin)
    return HTMLResponse(page, headers={"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"})
