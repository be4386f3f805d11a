"""Where files are sent: in one piece with a token in the header, or to an address that carries its own permission.

    POST /files/upload                            whole file, `Authorization`
    POST /files/upload/multipart                  begin; then PUT {access_url}/multipart/{id}/{n}, POST .../complete
    PUT  /files/upload/{permission}               whole file
    PUT  /files/upload/{permission}/{n}           a part; then POST .../complete

A permission is a signed token that names the key, so nothing about an upload is kept in memory.
"""

from __future__ import annotations

import re
from dataclasses import asdict

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.areas import Arrival
from server.auth import KeyRing
from server.body import check_declared, read_object
from server.errors import PlainError
from server.lifecycle import access, lifetime
from server.responses import json_response, wrong_method
from server.routes.rest import UPLOAD_TTL_S
from server.tokens import Tokens
from server.uploads import MAX_PART_BYTES, MAX_UPLOAD_BYTES, Promise, Uploads

_BY_ACCESS_URL = re.compile(r"/files/(?P<key>[^/]+)/multipart/(?P<token>[^/]+)/(?P<tail>[^/]+)")
_BY_UPLOAD_URL = re.compile(r"/files/upload/(?P<token>[^/]+)(?:/(?P<tail>[^/]+))?")


class UploadArea:
    """ASGI app for writes under `/files/`."""

    def __init__(self, uploads: Uploads, tokens: Tokens, keys: KeyRing) -> None:
        self._uploads = uploads
        self._tokens = tokens
        self._keys = keys

    @staticmethod
    def concerns(path: str) -> bool:
        """Whether this path is about sending a file."""
        return path == "/files/upload" or path.startswith("/files/upload/") or bool(_BY_ACCESS_URL.fullmatch(path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival: Arrival = scope["arrival"]
        request = Request(scope, receive)
        if arrival.path == "/files/upload":
            response = await self._whole(arrival, request)
        elif arrival.path == "/files/upload/multipart":
            response = self._begin(arrival, request)
        else:
            response = await self._permitted(arrival, request)
        await response(scope, receive, send)

    async def _whole(self, arrival: Arrival, request: Request) -> Response:
        _require(request, "POST")
        self._check(request.headers)
        check_declared(request, MAX_UPLOAD_BYTES)
        promise = _promise(request.headers)
        await self._uploads.receive(promise, request.stream())
        return json_response({"access_url": f"{arrival.origin}/files/{promise.key}", "uploaded": True})

    def _begin(self, arrival: Arrival, request: Request) -> Response:
        _require(request, "POST")
        self._check(request.headers)
        promise = _promise(request.headers)
        upload_id = self._tokens.issue("upload", UPLOAD_TTL_S, **asdict(promise))
        return json_response({"access_url": f"{arrival.origin}/files/{promise.key}", "uploadId": upload_id})

    async def _permitted(self, arrival: Arrival, request: Request) -> Response:
        """Whatever an upload address allows: the whole file, a part, or the end."""
        match = _BY_ACCESS_URL.fullmatch(arrival.path) or _BY_UPLOAD_URL.fullmatch(arrival.path)
        claims = self._tokens.read("upload", match["token"]) if match else None
        if match is None or claims is None:
            raise PlainError(403, "This upload address is not valid, or has expired")
        promise = Promise(**{name: claims.get(name) for name in Promise.__dataclass_fields__})  # type: ignore[arg-type]
        if match.re is _BY_ACCESS_URL and match["key"] != promise.key:
            raise PlainError(403, "This upload address is not valid, or has expired")
        tail = match["tail"]
        if tail is None:
            _require(request, "PUT")
            check_declared(request, MAX_UPLOAD_BYTES)
            await self._uploads.receive(promise, request.stream())
            return json_response({})
        if tail == "complete":
            _require(request, "POST")
            await self._uploads.complete(promise, (await read_object(request)).get("parts"))
            return json_response({"access_url": f"{arrival.origin}/files/{promise.key}"})
        return await self._part(arrival, request, promise, tail)

    async def _part(self, arrival: Arrival, request: Request, promise: Promise, tail: str) -> Response:
        if not tail.isascii() or not tail.isdecimal() or len(tail) > 5:
            # Without the path, which holds the permission.
            raise PlainError(404, "An upload address ends in the number of a part, or in complete")
        if request.method == "POST":
            # The `gcs` way of fal's toolkit asks for an address for every part first.
            return json_response({"upload_url": arrival.origin + arrival.path})
        _require(request, "PUT")
        check_declared(request, MAX_PART_BYTES)
        etag = await self._uploads.receive_part(promise, int(tail), request.stream())
        # JS reads the body, Python the header.
        return json_response({"partNumber": int(tail), "etag": etag}, headers={"etag": f'"{etag}"'})

    def _check(self, headers: Headers) -> None:
        """An upload token, or a key. Raises: PlainError 401."""
        _, _, token = headers.get("authorization", "").partition(" ")
        if self._tokens.read("cdn", token.strip()) is None:
            self._keys.check(headers)


def _promise(headers: Headers) -> Promise:
    lifecycle = headers.get("x-fal-object-lifecycle") or headers.get("x-fal-object-lifecycle-preference")
    kind, name = headers.get("content-type", ""), headers.get("x-fal-file-name")
    return Promise.make(kind, name, lifetime(lifecycle), access(lifecycle))


def _require(request: Request, method: str) -> None:
    if request.method != method:
        raise wrong_method(method, "OPTIONS")
