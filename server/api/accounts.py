"""Usage and requests in the words of fal's platform API."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from server.api.prices import UNIT, Prices
from server.api.wire import Sign, absolute
from server.jobs.store.accounts import DAY_S, Usage, billable_units
from server.jobs.store.base import Store
from server.jobs.store.budgets import Budget
from server.jobs.store.job import Job, JobStatus

Status = Literal["success", "error", "queued", "running", "completed", "failed", "cancelled"]
STATUSES: dict[Status, tuple[JobStatus, ...]] = {
    "success": (JobStatus.COMPLETED,),
    "error": (JobStatus.FAILED, JobStatus.CANCELLED),
    "queued": (JobStatus.QUEUED,),
    "running": (JobStatus.RUNNING,),
    "completed": (JobStatus.COMPLETED,),
    "failed": (JobStatus.FAILED,),
    "cancelled": (JobStatus.CANCELLED,),
}
"""fal's words for states, and our own, which say more."""


def moment(when: datetime | None, default: float) -> float:
    """Unix seconds; UTC unless it says otherwise."""
    if when is None:
        return default
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def statuses(names: Iterable[Status]) -> tuple[JobStatus, ...]:
    """The states that are meant."""
    return tuple(status for name in names for status in STATUSES[name])


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
        "images": row.images,
        "gpu_seconds": round(row.seconds, 3),
    } | ({"tags": {tag: row.value}} if tag else {})


def budget_entry(budget: Budget, store: Store, key_id: str) -> dict[str, Any]:
    """A budget of a key and how much of it is used, or waits to be."""
    now = store.now()
    return {
        "amount": budget.amount,
        "unit": budget.unit,
        "period": budget.period,
        "used": budget.of(store.units_since(key_id, budget.first_day(now))),
        "renews_on": budget.next_date(now).isoformat(),
    }


def request_entry(job: Job) -> dict[str, Any]:
    """One request of a search, without its input and result."""
    outcome, ended = job.outcome, job.finished_at
    return {
        "request_id": job.id,
        "endpoint_id": job.endpoint,
        "sent_at": iso(job.created_at),
        "started_at": None if job.started_at is None else iso(job.started_at),
        "ended_at": None if ended is None else iso(ended),
        "status": job.status.value,
        "status_code": None if outcome is None else outcome.http_status,
        "duration": None if ended is None or job.started_at is None else round(ended - job.started_at, 3),
        "billable_units": billable_units(outcome) if outcome else 0,
        "gpu_seconds": None if outcome is None else outcome.metrics.get("device_time"),
        "auth_method": job.key_id,
        "model": job.model,
        "tags": job.tags,
    }


def payloads(job: Job, sign: Sign) -> dict[str, Any]:
    """Input and result of one request, unless its caller wanted them not kept."""
    if not job.store_io:
        return {}
    return {"json_input": job.input, "json_output": job.outcome and absolute(job.outcome.body, "", sign)}


def days(start: datetime | None, end: datetime | None, now: float) -> tuple[int, int]:
    """The first and last day that usage is asked of; by default yesterday and today."""
    first, last = moment(start, now - DAY_S), moment(end, now)
    return math.floor(first / DAY_S), math.floor(last / DAY_S)


def iso(unix_s: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return (datetime.fromtimestamp(0, UTC) + timedelta(seconds=unix_s)).isoformat(timespec="milliseconds")
