"""The REST area: tokens for realtime and uploads, and where to send a file."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.body import read_object
from server.api.errors import InputError, problem
from server.api.lifecycle import access, lifetime
from server.api.wire import Sign
from server.files.uploads import UploadTicket
from server.gateway.areas import Target
from server.gateway.keys import Caller
from server.gateway.tokens import UPLOAD_TTL_S, Tokens
from server.http.errors import PlainError
from server.http.responses import json_response, wrong_method
from server.jobs.signing import Signer

JWKS = "/.well-known/jwks.json"
CDN_TTL_S = 30 * 86400
MAX_REALTIME_TTL_S = 86400


class RestArea:
    """ASGI app of the REST area."""

    def __init__(self, tokens: Tokens, signer: Signer, sign: Sign) -> None:
        self._tokens = tokens
        self._sign = sign
        self._signer = signer
        self._posts = {
            "/tokens": self._token,
            "/tokens/realtime": self._realtime_token,
            "/storage/auth/token": self._cdn_token,
            "/storage/upload/initiate": self._initiate,
            "/storage/upload/initiate-multipart": self._initiate,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target: Target = scope["target"]
        if target.path == JWKS:
            await self._jwks(scope)(scope, receive, send)
            return
        answer = self._posts.get(target.path)
        if answer is None:
            raise PlainError(404, f"Path {target.path[:200]} not found")
        if scope["method"] != "POST":
            raise wrong_method("POST", "OPTIONS")
        body = await read_object(Request(scope, receive))
        response = json_response(answer(target, scope["caller"], body, Headers(scope=scope)))
        await response(scope, receive, send)

    def _jwks(self, scope: Scope) -> Response:
        """The keys that check webhook signatures; receivers may keep them for a day."""
        if scope["method"] not in ("GET", "HEAD"):
            raise wrong_method("GET", "HEAD", "OPTIONS")
        return json_response(self._signer.jwks(), headers={"cache-control": "public, max-age=3600"})

    def _token(self, target: Target, caller: Caller, body: dict[str, Any], headers: Headers) -> str:
        """A bare JSON string, as the realtime clients expect."""
        return self._issue_realtime(caller, body, "token_expiration")

    def _realtime_token(self, target: Target, caller: Caller, body: dict[str, Any], headers: Headers) -> dict[str, str]:
        """fal's newer route for users' own back ends."""
        return {"token": self._issue_realtime(caller, body, "duration")}

    def _issue_realtime(self, caller: Caller, body: dict[str, Any], field: str) -> str:
        apps, duration = body.get("allowed_apps"), body.get(field, 120)
        is_number = isinstance(duration, int | float) and not isinstance(duration, bool)
        if not is_number or not 0 < duration <= MAX_REALTIME_TTL_S:
            msg = f"Input should be a number of seconds, more than 0 and at most {MAX_REALTIME_TTL_S}"
            raise InputError([problem([field], msg, "less_than_equal", {"le": MAX_REALTIME_TTL_S}, duration)])
        if not isinstance(apps, list) or not apps or not all(isinstance(app, str) for app in apps):
            raise InputError([problem(["allowed_apps"], "Input should be a list of app names", "list_type")])
        return self._tokens.issue("realtime", float(duration), apps=apps, caller=caller.key)

    def _cdn_token(self, target: Target, caller: Caller, body: dict[str, Any], headers: Headers) -> dict[str, str]:
        """What the Python clients ask for before an upload."""
        now = int(time.time())
        return {
            "token": self._tokens.issue("cdn", CDN_TTL_S, caller=caller.key),
            "token_type": "Bearer",
            "base_url": target.files,
            "created_at": _iso(now),
            "expires_at": _iso(now + CDN_TTL_S),
        }

    def _initiate(self, target: Target, caller: Caller, body: dict[str, Any], headers: Headers) -> dict[str, str]:
        """An address that carries its own permission, and the one that the file will have."""
        names = {name: body.get(name) for name in ("content_type", "file_name")}
        for name, value in names.items():
            if value is not None and not isinstance(value, str):
                raise InputError([problem([name], "Input should be a valid string", "string_type", value=value)])
        lifecycle = headers.get("x-fal-object-lifecycle")
        kind = names["content_type"] or ""
        ticket = UploadTicket.make(kind, names["file_name"], lifetime(lifecycle), access(lifecycle), caller.tenant)
        token = self._tokens.issue("upload", UPLOAD_TTL_S, caller=caller.key, **asdict(ticket))
        return {
            "upload_url": f"{target.files}/files/upload/{token}",
            "file_url": target.files + self._sign(f"/files/{ticket.key}"),
        }


def _iso(seconds: int) -> str:
    """With an offset, not `Z`, which Python before 3.11 cannot read."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()
