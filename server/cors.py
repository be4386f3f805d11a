"""Cross-origin rules: any page may call, because fal's browser clients do; keys, not origins, protect the server."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response

EXPOSED = (
    "x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-fal-retryable, x-fal-needs-retry, "
    "x-fal-billable-units, etag"
)
ALLOWED_METHODS = "GET, HEAD, POST, PUT, OPTIONS"
ALLOWED_HEADERS = "authorization, content-type, accept, x-fal-target-url"
PREFLIGHT_CACHE_S = 86400


def preflight(headers: Headers) -> Response:
    """The answer to any OPTIONS: every requested header is allowed, so that new `x-fal-*` ones work."""
    response = Response(status_code=204)
    response.headers["access-control-allow-methods"] = ALLOWED_METHODS
    response.headers["access-control-allow-headers"] = headers.get("access-control-request-headers") or ALLOWED_HEADERS
    response.headers["access-control-max-age"] = str(PREFLIGHT_CACHE_S)
    return response


def open_up(headers: MutableHeaders) -> None:
    """Let any origin read this answer and fal's headers in it."""
    headers["access-control-allow-origin"] = "*"
    headers["access-control-expose-headers"] = EXPOSED
