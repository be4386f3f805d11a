"""How requests went over time, in the words of fal's platform API: counts by end, and percentiles of their times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from server.api.accounts import iso
from server.jobs.store.accounts import DAY_S, Ended

MAX_REQUESTS = 20_000
"""Requests that one question reads, the newest; where there were more the answer says so. They take 0.1 s."""
HOURLY_S = 2 * DAY_S
"""Longer spans are told by days, unless a question says otherwise."""

Timeframe = Literal["minute", "hour", "day", "week", "month"]
Metric = Literal[
    "request_count", "success_count", "user_error_count", "error_count",
    "p50_prepare_duration", "p75_prepare_duration", "p90_prepare_duration",
    "p50_duration", "p75_duration", "p90_duration",
]  # fmt: skip
COUNTS: tuple[Metric, ...] = ("request_count", "success_count", "user_error_count", "error_count")

_LENGTHS_S: dict[str, int] = {"minute": 60, "hour": 3600, "day": DAY_S}
_METRICS: dict[str, Callable[[Sequence[Ended]], float | None]] = {
    "request_count": len,
    "success_count": lambda rows: sum(row.http_status < 400 for row in rows),
    "user_error_count": lambda rows: sum(400 <= row.http_status < 500 for row in rows),
    "error_count": lambda rows: sum(row.http_status >= 500 for row in rows),
} | {
    f"p{share}_{name}": lambda rows, share=share, part=part: _percentile([part(row) for row in rows], share)
    for name, part in (("prepare_duration", lambda row: row.waited_s), ("duration", lambda row: row.ran_s))
    for share in (50, 75, 90)
}


def time_series(rows: Iterable[Ended], timeframe: Timeframe, metrics: Sequence[Metric]) -> list[dict[str, Any]]:
    """A bucket for every span that has requests, by the moment of their submit, the oldest first."""
    buckets: dict[float, dict[str, list[Ended]]] = {}
    for row in rows:
        buckets.setdefault(_begin(row.created_at, timeframe), {}).setdefault(row.endpoint, []).append(row)
    return [
        {
            "bucket": iso(begin),
            "results": [
                {"endpoint_id": endpoint} | {metric: _METRICS[metric](found) for metric in metrics}
                for endpoint, found in sorted(endpoints.items())
            ],
        }
        for begin, endpoints in sorted(buckets.items())
    ]


def _begin(moment: float, timeframe: Timeframe) -> float:
    """When the span that holds a moment began, in UTC; weeks begin on Monday."""
    if timeframe in _LENGTHS_S:
        return moment - moment % _LENGTHS_S[timeframe]
    day = datetime.fromtimestamp(moment, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    days = day.weekday() if timeframe == "week" else day.day - 1
    return day.timestamp() - days * DAY_S


def _percentile(values: Iterable[float | None], share: int) -> float | None:
    """By nearest rank, in seconds; None where nothing ran."""
    known = sorted(value for value in values if value is not None)
    return round(known[math.ceil(len(known) * share / 100) - 1], 3) if known else None
