"""What the store tests share: a clock that tests move, both stores on it, and jobs to put in."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from server.jobs.store.base import Store
from server.jobs.store.job import JobStatus, NewJob, Outcome
from server.jobs.store.memory import MemoryStore
from server.jobs.store.postgres.store import PostgresStore
from server.jobs.store.sqlite import SqliteStore
from tests.server.postgres import the_server

LEASE_S = 30.0

DONE = Outcome(
    JobStatus.COMPLETED,
    200,
    {"images": [{"url": "/files/a.png"}]},
    metrics={"inference_time": 1.5},
    logs=[{"message": "step 1/1", "level": "INFO", "source": "USER", "timestamp": "2025-01-01T00:00:00+00:00"}],
)

REJECTED = Outcome(JobStatus.FAILED, 422, {"detail": [{"loc": ["body", "prompt"], "msg": "no", "type": "missing"}]})

OPEN_STORE: dict[str, Callable[[Path, Callable[[], float]], Store]] = {
    "memory": lambda folder, clock: MemoryStore(clock),
    "postgres": lambda folder, clock: PostgresStore(_schema_of(folder), clock),
    "sqlite": lambda folder, clock: SqliteStore(folder / "jobs.db", clock),
}


@cache
def _schema_of(folder: Path) -> str:
    """The same for the same folder, as the file in it is."""
    return the_server().schema()


SHARED = frozenset({"postgres"})
"""Stores that other nodes may be using: a start takes nothing of what runs for lost."""


class Clock:
    """Unix seconds that stand still until told."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


_numbers = itertools.count()


def new_job(**changes: Any) -> NewJob:
    """A job with an id of its own."""
    job = NewJob(
        id=f"job-{next(_numbers)}",
        endpoint="fal-ai/flux/dev",
        input={"prompt": "a red circle"},
        params={"model": "flux-shapes", "prompt": "a red circle", "seed": 7},
        output={"format": "png"},
    )
    return replace(job, **changes)


def place(store: Store, job_id: str) -> int | None:
    """Its position in the waiting line."""
    state = store.state(job_id)
    return None if state is None else state.position
