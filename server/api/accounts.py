"""Usage and requests in the words of fal's platform API."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from server.api.prices import UNIT, Prices
from server.http.errors import WireError
from server.jobs.store.accounts import DAY_S, Usage, billable_units
from server.jobs.store.base import Job, JobStatus

STATUSES = {
    "success": (JobStatus.COMPLETED,),
    "error": (JobStatus.FAILED, JobStatus.CANCELLED),
    **{status.value: (status,) for status in JobStatus},
}
"""fal's words for states, and our own, which say more."""


def moment(name: str, text: str | None, default: float) -> float:
    """Unix seconds of an ISO 8601 date or time; UTC unless it says otherwise. Raises: WireError 400."""
    if text is None:
        return default
    try:
        read = datetime.fromisoformat(text)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as exc:
        raise _refused(f"{name} must be a date or time such as 2026-01-31 or 2026-01-31T12:00:00Z") from exc


def statuses(names: Iterable[str]) -> tuple[JobStatus, ...]:
    """The states that are meant. Raises: WireError 400."""
    wanted = list(names)
    if unknown := [name for name in wanted if name not in STATUSES]:
        raise _refused(f"status '{unknown[0][:50]}' is none of {', '.join(STATUSES)}")
    return tuple(status for name in wanted for status in STATUSES[name])


def time_series(rows: Sequence[Usage], prices: Prices, tag: str) -> list[dict[str, Any]]:
    """Usage by day: a bucket for every day that has any."""
    days: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        assert row.day is not None
        days.setdefault(row.day, []).append(usage_entry(row, prices, tag))
    return [{"bucket": iso(day * DAY_S), "results": results} for day, results in days.items()]


def usage_entry(row: Usage, prices: Prices, tag: str) -> dict[str, Any]:
    """One line of usage. Args: tag: the label's name, if usage is told apart by one."""
    return {
        "endpoint_id": row.endpoint,
        "unit": UNIT,
        "quantity": row.units,
        "unit_price": prices.of(row.endpoint),
        "cost": prices.cost(row.endpoint, row.units),
        "currency": prices.currency,
        "auth_method": row.key_id,
        "requests": row.requests,
        "failures": row.failures,
    } | ({"tags": {tag: row.value}} if tag else {})


def request_entry(job: Job, with_payloads: bool) -> dict[str, Any]:
    """One request of a search. Payloads are shown unless their caller wanted them not kept."""
    outcome, ended = job.outcome, job.finished_at
    entry = {
        "request_id": job.id,
        "endpoint_id": job.endpoint,
        "sent_at": iso(job.created_at),
        "started_at": None if job.started_at is None else iso(job.started_at),
        "ended_at": None if ended is None else iso(ended),
        "status": job.status.value,
        "status_code": None if outcome is None else outcome.http_status,
        "duration": None if ended is None or job.started_at is None else round(ended - job.started_at, 3),
        "billable_units": billable_units(outcome.body) if outcome and job.status is JobStatus.COMPLETED else 0,
        "auth_method": job.key_id,
        "model": job.model,
        "tags": job.tags,
    }
    if with_payloads and job.store_io:
        entry |= {"json_input": job.input, "json_output": None if outcome is None else outcome.body}
    return entry


def days(start: str | None, end: str | None, now: float) -> tuple[int, int]:
    """The first and last day that usage is asked of; by default yesterday and today. Raises: WireError 400."""
    first, last = moment("start", start, now - DAY_S), moment("end", end, now)
    return math.floor(first / DAY_S), math.floor(last / DAY_S)


def iso(unix_s: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=unix_s)).isoformat(timespec="milliseconds")


def _refused(sentence: str) -> WireError:
    return WireError(400, {"detail": sentence, "code": "bad_request"})
