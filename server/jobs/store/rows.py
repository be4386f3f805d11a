"""How a job is written into a row of the `job` table, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from server.jobs.store.job import Job, JobStatus, Outcome

CONSTANT_COLUMNS = (
    "id", "endpoint", "input", "params", "output", "priority", "created_at", "start_deadline", "max_attempts",
    "is_ephemeral", "webhook_url", "base_url", "store_io", "hint_bucket", "tenant", "key_id", "tags", "picture_key",
)  # fmt: skip
"""Set when a job is stored, and never again, but for what is large in an input when its job ends."""

STATE_COLUMNS = (
    "status", "started_at", "finished_at", "owner", "epoch", "attempt", "deaths", "lone_deaths", "lease_until",
    "cancel_requested", "has_begun", "outcome", "ahead_s",
)  # fmt: skip
"""What the transitions change."""

DERIVED_COLUMNS = ("model", "queue_rank")
"""Kept for the indexes; properties of `Job`."""

SIZE = ("width", "height", "num_images", "num_inference_steps")
"""Parameters that decide how much work a job is."""

CHANGING_COLUMNS = frozenset({"queue_rank", "brief", "http_status"})
"""Derived ones that the transitions change."""

READ_COLUMNS = ("seq", *CONSTANT_COLUMNS, *STATE_COLUMNS)

_JSON = frozenset({"input", "params", "output", "tags"})
_FLAGS = frozenset({"cancel_requested", "has_begun", "is_ephemeral", "store_io"})


def to_row(job: Job, columns: tuple[str, ...]) -> tuple[Any, ...]:
    """The job's values for these columns."""
    return tuple(_DERIVED[name](job) if name in _DERIVED else _to_value(name, getattr(job, name)) for name in columns)


def from_row(row: tuple[Any, ...]) -> Job:
    """A job from a row of READ_COLUMNS. Every status poll reads one, so only columns that need it are converted."""
    values = dict(zip(READ_COLUMNS, row, strict=True))
    for name, read in _READERS:
        if values[name] is not None:
            values[name] = read(values[name])
    return Job(**values)


# The standard library's JSON and not a faster one: what it has parsed it can also write (integers of any size,
# lone surrogates), and what a client sent must never make a row unwritable.
def _to_value(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "outcome":
        return json.dumps(asdict(value))
    if name in _JSON:
        return json.dumps(value)
    if name in _FLAGS:
        return int(value)
    return value


def brief(outcome: Outcome) -> Outcome:
    """Without its payloads, which may be tens of megabytes: of pictures only their sizes."""
    sizes = [{name: image.get(name) for name in ("width", "height")} for image in outcome.body.get("images", ())]
    return replace(outcome, body={"images": sizes})


def size_of(job: Job) -> list[Any]:
    """The parameters in SIZE; None for what it does not say."""
    params = job.params or {}
    return [params.get(name) for name in SIZE]


_DERIVED: dict[str, Callable[[Job], Any]] = {
    "brief": lambda job: None if job.outcome is None else json.dumps(asdict(brief(job.outcome))),
    "http_status": lambda job: None if job.outcome is None else job.outcome.http_status,
    "size": lambda job: json.dumps(size_of(job)),
}


def _outcome(text: str) -> Outcome:
    fields = json.loads(text)
    return Outcome(**{**fields, "status": JobStatus(fields["status"])})


_READERS: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    *((name, json.loads) for name in sorted(_JSON)),
    *((name, bool) for name in sorted(_FLAGS)),
    ("status", JobStatus),
    ("outcome", _outcome),
)
