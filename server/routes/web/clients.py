"""How each fal client is pointed at this server, over HTTP: what `fluxserve env` prints, seen from the caller."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request

from server.api.clients import CLIENTS, OPEN_KEY, UNKNOWN_KEY, ClientSetupError, ServerAddress, Setup
from server.gateway.keys import KeyRing
from server.http import tls
from server.http.peers import is_local_caller
from server.settings import Settings

ELSEWHERE = Path("fluxserve-ca-bundle.pem")
"""Stands for the authorities' file where the caller is on another machine; ours has its paths to itself."""


def clients_router(settings: Settings, keys: KeyRing) -> APIRouter:
    """GET /v1/clients."""
    router = APIRouter()

    @router.get("/v1/clients")
    async def clients(request: Request) -> dict[str, Any]:
        """For every client the lines that point it here: `id`, `title`, `lines`, `notes`. No key is ever in them."""
        bundle = tls.files_of(settings.data_dir).bundle if is_local_caller(request.scope, request.headers) else None
        key = OPEN_KEY if keys.is_open else UNKNOWN_KEY
        reach = _reach(request.scope["target"].origin, settings.tls_port, bundle or ELSEWHERE, key)
        return {"clients": _setups(reach)}

    return router


def _reach(origin: str, tls_port: int, bundle: Path, key: str) -> ServerAddress:
    """This server as who came by `origin` reaches it."""
    parts = urlsplit(origin)
    if parts.scheme == "https":
        return ServerAddress(origin, origin, bundle, key)
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    # A path means a proxy in front, which is not known to pass TLS on.
    secure = f"https://{name}:{tls_port}" if tls_port and not parts.path.strip("/") else None
    return ServerAddress(origin, secure, bundle, key)


def _setups(reach: ServerAddress) -> list[dict[str, Any]]:
    """Those of every client that can come here at all."""
    listed = []
    for name, setup_for in CLIENTS.items():
        with contextlib.suppress(ClientSetupError):
            listed.append(_entry(name, setup_for(reach)))
    return listed


def _entry(name: str, setup: Setup) -> dict[str, Any]:
    return {"id": name, "title": setup.title, "lines": list(setup.lines), "notes": list(setup.notes)}
