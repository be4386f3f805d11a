"""How long a file is kept, as its owner asks in fal's lifecycle headers."""

from __future__ import annotations

import math
from typing import Any

import orjson

MAX_LIFETIME_S = 100 * 365 * 86400.0


def lifetime(header: str | None) -> float | None:
    """Seconds from `{"expiration_duration_seconds": n}`; None for the server's default.

    What is not understood is ignored, as fal asks of servers: it never fails a request.
    """
    if not header:
        return None
    try:
        wishes: Any = orjson.loads(header)
    except orjson.JSONDecodeError:
        return None
    seconds = wishes.get("expiration_duration_seconds") if isinstance(wishes, dict) else None
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        return None
    return min(float(seconds), MAX_LIFETIME_S)
