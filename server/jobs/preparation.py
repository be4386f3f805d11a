"""What a job fetches between its claim and its worker: pictures, adapters. Kept while it lives here, for a retry."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from server.jobs.store.job import Job, Outcome

KEPT_BYTES = 1 << 30
"""Of pictures kept for retries, over all jobs; beyond it a retry reads them again."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the worker is sent. Args: as in `Submit`; timings: seconds that parts of the preparation took."""

    params: dict[str, Any]
    pictures: list[dict[str, Any]] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the pictures."""
        return sum(len(picture["pixels"]) for picture in self.pictures)


Prepare = Callable[[Job], Awaitable[Prepared | Outcome]]
"""Reads and fetches what a job names, and decides what follows from it; an Outcome ends the job instead."""


class Preparations:
    """Prepares each job once, if nothing is lost meanwhile. Args: prepare: does the work."""

    def __init__(self, prepare: Prepare) -> None:
        self._prepare = prepare
        self._kept: dict[str, Prepared] = {}

    async def of(self, job: Job) -> Prepared | Outcome:
        """What the job needs. Raises: what the work raises beyond faults of the input."""
        prepared = await self._prepare(job)
        if isinstance(prepared, Prepared):
            self._keep(job.id, prepared)
        return prepared

    def ready(self, job: Job) -> Prepared | None:
        """What is ready without waiting; of a job that needs nothing, its parameters alone."""
        if not job.needs_inputs:
            assert job.params is not None
            return Prepared(job.params)
        return self._kept.get(job.id)

    def forget(self, job_id: str) -> None:
        """The job has ended. Any thread."""
        self._kept.pop(job_id, None)

    def _keep(self, job_id: str, prepared: Prepared) -> None:
        """Keep it for a retry, instead of the oldest where that would be too much."""
        room = KEPT_BYTES - prepared.size
        for old, kept in reversed(list(self._kept.items())):
            room -= kept.size
            if room < 0:
                self.forget(old)
        self._kept[job_id] = prepared
