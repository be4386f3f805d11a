"""Cross-origin rules: any page may call, because fal's browser clients do; keys, not origins, protect the server."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import Response

EXPOSED = (
    "x-fal-request-id, x-fal-request-timeout-type, x-fal-error-type, x-fal-retryable, x-fal-needs-retry, "
    "x-fal-billable-units, x-fluxserve-cache, etag"
)
ALLOWED_METHODS = "GET, HEAD, POST, PUT, OPTIONS"
ALLOWED_HEADERS = "authorization, content-type, accept, x-fal-target-url"
PREFLIGHT_CACHE_S = 86400

OPEN = ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED.encode()))
"""Headers of every answer: any origin may read it, and fal's headers in it."""


def preflight(headers: Headers) -> Response:
    """The answer to any OPTIONS: every requested header is allowed, so that new `x-fal-*` ones work."""
    response = Response(status_code=204)
    response.headers["access-control-allow-methods"] = ALLOWED_METHODS
    response.headers["access-control-allow-headers"] = headers.get("access-control-request-headers") or ALLOWED_HEADERS
    response.headers["access-control-max-age"] = str(PREFLIGHT_CACHE_S)
    if headers.get("access-control-request-private-network") == "true":
        # A public page asks before it calls this machine or its network; whether it may is for keys to say.
        response.headers["access-control-allow-private-network"] = "true"
    return response
