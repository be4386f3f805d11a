"""How often a request may run again, cause by cause, as its caller asks in `X-Fal-Retry-Config`."""

from __future__ import annotations

from typing import Any

import orjson

from server.jobs.store.transitions import MAX_RETRIES

CAUSES = frozenset({"server_error", "connection_error"})
"""A worker that reports a fault of its own, and one that is gone. fal's `timeout` is the second here: a worker that
hangs is ended."""


def retry_limits(header: str | None) -> dict[str, int]:
    """Retries by cause from `{"server_error": {"retries": 2}, ...}`, at most MAX_RETRIES; {} for the server's own.

    What is not understood is ignored: it never fails a request.
    """
    if not header:
        return {}
    try:
        options: Any = orjson.loads(header)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(options, dict):
        return {}
    limits = {cause: _limit(asked) for cause, asked in options.items() if cause in CAUSES}
    return {cause: limit for cause, limit in limits.items() if limit is not None}


def _limit(asked: object) -> int | None:
    count = asked.get("retries") if isinstance(asked, dict) else None
    is_count = isinstance(count, int) and not isinstance(count, bool) and count >= 0
    return min(count, MAX_RETRIES) if is_count else None  # type: ignore[type-var]
