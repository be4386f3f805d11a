"""How long a file is kept and who may read it, as its owner asks in fal's lifecycle headers."""

from __future__ import annotations

import math
from typing import Any

import orjson

from server.files.objects import Access

MAX_LIFETIME_S = 100 * 365 * 86400.0


def lifetime(header: str | None) -> float | None:
    """Seconds from `{"expiration_duration_seconds": n}`; None for the server's default.

    What is not understood is ignored, as fal asks of servers: it never fails a request.
    """
    seconds = _parsed(header).get("expiration_duration_seconds")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        return None
    return min(float(seconds), MAX_LIFETIME_S)


def access(header: str | None) -> Access:
    """What `{"initial_acl": {"default": ...}}` decides; its rules name users of fal, who are nobody here."""
    acl = _parsed(header).get("initial_acl")
    default = acl.get("default") if isinstance(acl, dict) else None
    return default if default in ("forbid", "hide") else "allow"


def _parsed(header: str | None) -> dict[str, Any]:
    try:
        options = orjson.loads(header or "{}")
    except orjson.JSONDecodeError:
        return {}
    return options if isinstance(options, dict) else {}
