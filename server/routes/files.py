"""Results and uploads by address: public as on fal, with ranges, and harmless whatever they contain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from server.areas import Arrival
from server.errors import PlainError
from server.responses import wrong_method
from server.routes.uploads import UploadArea

if TYPE_CHECKING:
    from server.node import Node

_PREFIX = "/files/"
_HEADERS = {
    "x-content-type-options": "nosniff",
    # Uploads may be HTML or SVG: nothing in them may run under our origin.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "cross-origin-resource-policy": "cross-origin",
    # A key names one content for ever.
    "cache-control": "public, max-age=31536000, immutable",
}


class FilesArea:
    """ASGI app of the CDN area; what concerns sending a file goes to `uploads`."""

    def __init__(self, node: Node, uploads: UploadArea) -> None:
        self._node = node
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival: Arrival = scope["arrival"]
        if self._uploads.concerns(arrival.path):
            await self._uploads(scope, receive, send)
            return
        if not arrival.path.startswith(_PREFIX):
            raise PlainError(404, "File not found")
        if scope["method"] not in ("GET", "HEAD"):
            raise wrong_method("GET", "HEAD", "OPTIONS")
        response = self._file(arrival.path.removeprefix(_PREFIX), Headers(scope=scope).get("if-none-match", ""))
        await response(scope, receive, send)

    def _file(self, key: str, known_etags: str) -> Response:
        stored = self._node.objects.stat(key)
        path = self._node.objects.path(key)
        if stored is None or path is None:
            raise PlainError(404, "File not found")
        etag = f'"{key}"'
        if etag in known_etags:
            return Response(status_code=304, headers={**_HEADERS, "etag": etag})
        return FileResponse(
            path,
            media_type=stored.content_type,
            filename=stored.file_name,
            content_disposition_type="inline",
            headers={**_HEADERS, "etag": etag},
        )
