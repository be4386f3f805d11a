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

from server.api.body import check_declared, read_object
from server.api.lifecycle import access, lifetime
from server.api.wire import Sign
from server.files.uploads import MAX_PART_BYTES, MAX_UPLOAD_BYTES, Uploads, UploadTicket
from server.gateway.areas import Target
from server.gateway.guard import Guard
from server.gateway.key_file import KeyScope
from server.gateway.keys import Caller
from server.gateway.tokens import UPLOAD_TTL_S, Tokens
from server.http.errors import PlainError
from server.http.responses import json_response, wrong_method
from server.jobs.limits import Allowance

_BY_ACCESS_URL = re.compile(r"/files/(?P<key>[^/]+)/multipart/(?P<token>[^/]+)/(?P<tail>[^/]+)")
_BY_UPLOAD_URL = re.compile(r"/files/upload/(?P<token>[^/]+)(?:/(?P<tail>[^/]+))?")


class UploadArea:
    """ASGI app for writes under `/files/`."""

    def __init__(self, uploads: Uploads, tokens: Tokens, guard: Guard, allowance: Allowance, sign: Sign) -> None:
        self._uploads = uploads
        self._tokens = tokens
        self._guard = guard
        self._allowance = allowance
        self._sign = sign

    @staticmethod
    def concerns(path: str) -> bool:
        """Whether this path is about sending a file."""
        return path == "/files/upload" or path.startswith("/files/upload/") or bool(_BY_ACCESS_URL.fullmatch(path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target: Target = scope["target"]
        request = Request(scope, receive)
        if target.path == "/files/upload":
            response = await self._whole(target, request)
        elif target.path == "/files/upload/multipart":
            response = self._begin(target, request)
        else:
            response = await self._permitted(target, request)
        await response(scope, receive, send)

    async def _whole(self, target: Target, request: Request) -> Response:
        _require(request, "POST")
        ticket = _ticket(request.headers, self._check(request))
        await self._receive(ticket, request)
        return json_response({"access_url": self._address(target, ticket), "uploaded": True})

    def _begin(self, target: Target, request: Request) -> Response:
        _require(request, "POST")
        caller = self._check(request)
        ticket = _ticket(request.headers, caller)
        upload_id = self._tokens.issue("upload", UPLOAD_TTL_S, caller=caller.key, **asdict(ticket))
        return json_response({"access_url": self._address(target, ticket), "uploadId": upload_id})

    async def _permitted(self, target: Target, request: Request) -> Response:
        """Whatever an upload address allows: the whole file, a part, or the end."""
        match = _BY_ACCESS_URL.fullmatch(target.path) or _BY_UPLOAD_URL.fullmatch(target.path)
        claims = self._tokens.read("upload", match["token"]) if match else None
        if match is None or claims is None or self._guard.of_token(claims) is None:
            raise PlainError(403, "This upload address is not valid, or has expired")
        ticket = UploadTicket(**{name: claims.get(name) for name in UploadTicket.__dataclass_fields__})  # type: ignore[arg-type]
        if match.re is _BY_ACCESS_URL and match["key"] != ticket.key:
            raise PlainError(403, "This upload address is not valid, or has expired")
        tail = match["tail"]
        if tail is None:
            _require(request, "PUT")
            await self._receive(ticket, request)
            return json_response({})
        if tail == "complete":
            _require(request, "POST")
            parts = (await read_object(request)).get("parts")
            await self._uploads.complete(ticket, parts, self._allowance.room(ticket.tenant))
            return json_response({"access_url": self._address(target, ticket)})
        return await self._part(target, request, ticket, tail)

    async def _part(self, target: Target, request: Request, ticket: UploadTicket, tail: str) -> Response:
        if not tail.isascii() or not tail.isdecimal() or len(tail) > 5:
            # Without the path, which holds the permission.
            raise PlainError(404, "An upload address ends in the number of a part, or in complete")
        if request.method == "POST":
            # The `gcs` way of fal's toolkit asks for an address for every part first.
            return json_response({"upload_url": target.files + target.path})
        _require(request, "PUT")
        check_declared(request, MAX_PART_BYTES)
        etag = await self._uploads.receive_part(
            ticket, int(tail), request.stream(), self._allowance.room(ticket.tenant)
        )
        # JS reads the body, Python the header.
        return json_response({"partNumber": int(tail), "etag": etag}, headers={"etag": f'"{etag}"'})

    async def _receive(self, ticket: UploadTicket, request: Request) -> None:
        room = self._allowance.room(ticket.tenant)
        check_declared(request, MAX_UPLOAD_BYTES if room is None else min(MAX_UPLOAD_BYTES, room))
        await self._uploads.receive(ticket, request.stream(), room)

    def _address(self, target: Target, ticket: UploadTicket) -> str:
        return target.files + self._sign(f"/files/{ticket.key}")

    def _check(self, request: Request) -> Caller:
        """Who sends: an upload token, or a key for files. Raises: PlainError 401, 403."""
        _, _, token = request.headers.get("authorization", "").partition(" ")
        caller = self._guard.of_token(self._tokens.read("cdn", token.strip()))
        caller = caller or self._guard.by_key(request.scope, request.headers)
        caller.require(KeyScope.FILES)
        return caller


def _ticket(headers: Headers, caller: Caller) -> UploadTicket:
    lifecycle = headers.get("x-fal-object-lifecycle") or headers.get("x-fal-object-lifecycle-preference")
    kind, name = headers.get("content-type", ""), headers.get("x-fal-file-name")
    return UploadTicket.make(kind, name, lifetime(lifecycle), access(lifecycle), caller.tenant)


def _require(request: Request, method: str) -> None:
    if request.method != method:
        raise wrong_method(method, "OPTIONS")
