"""Errors below /v1, where OpenAI's API and fal's platform API both put an object under `error`."""

from __future__ import annotations

from starlette.responses import Response

from server.http.errors import WireError
from server.http.responses import error_response

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def shaped_response(exc: WireError, path: str) -> Response:
    """The answer that an exception means at this path, in the shape that callers of the path read."""
    return error_response(openai_shape(exc) if f"{path}/".startswith("/v1/") else exc)


def openai_shape(exc: WireError) -> WireError:
    """The same error as OpenAI states it; a wrong input is its 400, not fal's 422."""
    detail = exc.body.get("detail")
    first = detail[0] if isinstance(detail, list) and detail else {}
    error = {
        "message": first.get("msg", detail),
        "type": _TYPES.get(exc.status, "invalid_request_error" if exc.status < 500 else "server_error"),
        "param": ".".join(str(part) for part in first.get("loc", [])[1:]) or None,
        "code": exc.body.get("code") or first.get("type", exc.body.get("error_type")),
    }
    return WireError(400 if exc.status == 422 else exc.status, {"error": error}, exc.headers)
