"""Questions about many jobs at once, and the units that are counted: what usage and search mean in every store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from server.jobs.store.job import Job, JobStatus, Outcome

DAY_S = 86400
MEGAPIXEL = 1 << 20

USAGE_KEPT_DAYS = 400
"""Usage older than this is forgotten: a label of its own on every request would else fill the disk."""


PauseKind = Literal["model", "key"]


@dataclass(frozen=True, slots=True)
class Pause:
    """Requests of one model, or of one key, wait until it is resumed. `since` is in Unix seconds."""

    kind: PauseKind
    name: str
    since: float


@dataclass(frozen=True, slots=True)
class Usage:
    """What one key had of one endpoint on one day.

    Args:
        day: since 1970-01-01, UTC; None for a sum over days.
        value: of the label that was asked for; empty if none was.
        requests: that ended well. failures: that ended otherwise. units: megapixels, see `billable_units`.
        images: pictures in results. seconds: of devices, each request's own part; those of failed ones are not known.
    """

    day: int | None
    tenant: str
    endpoint: str
    key_id: str
    value: str
    requests: int
    failures: int
    units: int
    images: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class UsageQuestion:
    """Which usage. Args: tenant: None for everybody's. days: first and last. name: of a label; only what carries it
    counts then, apart by its value. keys, endpoints: any if empty. by_day: a row a day, or one for all."""

    tenant: str | None
    days: tuple[int, int]
    name: str = ""
    value: str | None = None
    endpoints: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    by_day: bool = True


@dataclass(frozen=True, slots=True)
class Search:
    """Which jobs. Args: tenant: None for everybody's. tags: all must be there. statuses, endpoints, keys, ids, models:
    any if empty. text: words of the prompt, or beginnings of words; all must be there, whatever their case.
    since, until: Unix seconds of the submit. before: only jobs stored before this `seq`."""

    tenant: str | None
    tags: tuple[tuple[str, str], ...] = ()
    statuses: tuple[JobStatus, ...] = ()
    endpoints: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    text: str = ""
    since: float = 0.0
    until: float = math.inf
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """How one request went, without its payloads. Args: created_at: Unix seconds. waited_s, ran_s: None where no worker
    began it."""

    endpoint: str
    created_at: float
    http_status: int
    waited_s: float | None
    ran_s: float | None


def billable_units(outcome: Outcome) -> int:
    """Megapixels of all pictures of a result, each rounded up; one is 1024 x 1024 pixels. None for what was not drawn:
    failures, and answers from stored pictures."""
    if outcome.status is not JobStatus.COMPLETED or is_cached(outcome):
        return 0
    images = outcome.body.get("images", ())
    sizes = ((int(image.get("width") or 0), int(image.get("height") or 0)) for image in images)
    return sum(max(1, math.ceil(width * height / MEGAPIXEL)) for width, height in sizes)


def is_cached(outcome: Outcome) -> bool:
    """Whether it was answered from the pictures of an earlier request."""
    return "cached_request_id" in outcome.metrics


def searchable(job: Job) -> str:
    """The prompt that a job is found by; none if it is not to be kept."""
    prompt = job.input.get("prompt") if job.store_io else None
    return prompt if isinstance(prompt, str) else ""


def day_of(unix_s: float) -> int:
    """Days since 1970-01-01, UTC."""
    return int(unix_s // DAY_S)


def entries(job: Job) -> Iterator[tuple[str, Usage]]:
    """What an ended job adds to usage, each with the label's name: once for itself, once for every label."""
    assert job.outcome is not None
    assert job.finished_at is not None
    is_good = job.status is JobStatus.COMPLETED
    images = len(job.outcome.body.get("images", ())) if is_good else 0
    counts = int(is_good), int(not is_good), billable_units(job.outcome), images
    seconds = float(job.outcome.metrics.get("device_time") or 0.0)
    for name, value in [("", ""), *job.tags.items()]:
        yield name, Usage(day_of(job.finished_at), job.tenant, job.endpoint, job.key_id, value, *counts, seconds)
