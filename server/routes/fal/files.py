"""Results and uploads by address: public as on fal unless their owner said otherwise, with ranges; nothing in
them runs in a browser."""

from __future__ import annotations

import math
import time
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from server.files.objects import Objects, StoredObject
from server.gateway.areas import Target
from server.gateway.guard import Guard
from server.gateway.keys import ANYBODY, Caller
from server.http.errors import PlainError
from server.http.responses import wrong_method
from server.routes.fal.stored_file import StoredFileResponse
from server.routes.fal.uploads import UploadArea

_PREFIX = "/files/"
_HEADERS = {
    "x-content-type-options": "nosniff",
    # Uploads may be HTML or SVG: nothing in them may run under our origin.
    "content-security-policy": "default-src 'none'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
}
_PASSIVE = frozenset({"text/plain", "application/json"})
_CACHED_S = 365 * 86400
_DIRECT_S = 300.0
"""How long an address of the object store's own holds: long enough to be followed, too short to be passed on."""
_AT_ONCE = 32
"""Reads under way: a store that hangs must take no threads from other routes."""
UNSIGNED = "This address is not signed, or has expired: ask for the result again, or send the key that it belongs to"


class FilesArea:
    """ASGI app of the CDN area; what concerns sending a file goes to `uploads`."""

    def __init__(self, objects: Objects, uploads: UploadArea, guard: Guard) -> None:
        self._objects = objects
        self._uploads = uploads
        self._guard = guard
        self._turns = CapacityLimiter(_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target: Target = scope["target"]
        if self._uploads.concerns(target.path):
            await self._uploads(scope, receive, send)
            return
        if not target.path.startswith(_PREFIX):
            raise PlainError(404, "File not found")
        if scope["method"] not in ("GET", "HEAD"):
            raise wrong_method("GET", "HEAD", "OPTIONS")
        response = await self._file(target.path.removeprefix(_PREFIX), scope)
        await response(scope, receive, send)

    async def _file(self, key: str, scope: Scope) -> Response:
        asked = Headers(scope=scope)
        stored = await to_thread.run_sync(self._objects.stat, key, limiter=self._turns)
        until = self._objects.admitted_until(key, scope["query_string"].decode("latin-1"))
        if until is None:
            self._check_owner(stored, scope, asked)
        if stored is None:
            raise PlainError(404, "File not found")
        if stored.access != "allow":
            self._check_access(stored, scope, asked)
        etag = f'"{key}"'
        headers = {**_HEADERS, "cache-control": _cache_control(stored, until), "etag": etag}
        if etag in asked.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        headers |= {"content-disposition": disposition} if (disposition := _disposition(stored)) else {}
        if scope["method"] == "GET" and (address := await self._direct(stored, disposition or "inline", until)):
            return RedirectResponse(address, 307, headers | {"cache-control": "private, no-store"})
        return StoredFileResponse(self._objects, stored, headers, self._turns)

    async def _direct(self, stored: StoredObject, disposition: str, until: float | None) -> str | None:
        """Where the object store itself gives it out, for no longer than we would."""
        if not self._objects.redirects:
            return None
        left_s = min(math.inf if until is None else until, stored.expires_at or math.inf) - time.time()
        lifetime_s = min(_DIRECT_S, left_s)
        return await to_thread.run_sync(self._objects.direct_url, stored, disposition, lifetime_s, limiter=self._turns)

    def _check_owner(self, stored: StoredObject | None, scope: Scope, asked: Headers) -> None:
        """Without a signature only a key of its tenant reads it. Raises: PlainError 403, also if there is none."""
        caller = self._caller(scope, asked)
        if caller is None or caller is ANYBODY or stored is None or not stored.belongs_to(caller.tenant):
            raise PlainError(403, UNSIGNED)

    def _check_access(self, stored: StoredObject, scope: Scope, asked: Headers) -> None:
        """Only who has a key of its tenant reads what is not for all. Raises: PlainError 403 or 404."""
        caller = self._caller(scope, asked)
        if caller is not None and stored.belongs_to(caller.tenant):
            return
        if stored.access == "hide":
            raise PlainError(404, "File not found")
        raise PlainError(403, "The owner of this file shares it with nobody")

    def _caller(self, scope: Scope, asked: Headers) -> Caller | None:
        """Whose key it is asked for with; None if there is none, or a wrong one."""
        try:
            return self._guard.by_key(scope, asked)
        except PlainError:
            return None


def _is_passive(content_type: str) -> bool:
    """Whether a browser may show it: anything that could hold a script is only saved."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind in _PASSIVE or (kind.startswith(("image/", "audio/", "video/")) and "+xml" not in kind)


def _disposition(stored: StoredObject) -> str | None:
    """Shown or saved, and under which name (RFC 6266)."""
    shown = "inline" if _is_passive(stored.content_type) else "attachment"
    if stored.file_name is None:
        return None if shown == "inline" else shown
    quoted = quote(stored.file_name)
    return f'{shown}; filename="{quoted}"' if quoted == stored.file_name else f"{shown}; filename*=utf-8''{quoted}"


def _cache_control(stored: StoredObject, until: float | None) -> str:
    """A key names one content for as long as the file lives: caches may keep it no longer, nor beyond its address."""
    if stored.access != "allow" or until is None:
        return "private, no-store"
    left_s = min(until, math.inf if stored.expires_at is None else stored.expires_at) - time.time()
    return f"public, max-age={int(min(max(left_s, 0), _CACHED_S))}, immutable"
