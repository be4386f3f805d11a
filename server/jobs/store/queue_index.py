"""The jobs that have not ended, and the last that have, in memory: a poll costs a look-up, a place a bisection.

No row is read for it, and nothing is counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from threading import Lock

from sortedcontainers import SortedList

from server.jobs.store.base import Job, JobState, JobStatus

RECENT = 64
"""Ended jobs kept: everybody who polls learns of an end at about the same time. Few, as a result may hold pictures."""


class QueueIndex:
    """Which jobs wait, in which order, which run, and how many are in each state; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._order: SortedList[tuple[float, int]] = SortedList()
        self._places: dict[str, tuple[float, int]] = {}
        self._states: dict[str, JobState] = {}
        """Of all that have not ended; positions are not in here, because those of others change them."""
        self._recent: dict[str, JobState] = {}
        """Of the last that ended, oldest first."""
        self._quarantined: set[str] = set()
        self._counts: Counter[JobStatus] = Counter()

    def change(self, before: Job | None, after: Job | None) -> None:
        """Take note that a committed change turned `before` into `after`; None is a row that does not exist."""
        with self._lock:
            if before is not None:
                self._counts[before.status] -= 1
                self._leave(before.id)
            if after is not None:
                self._counts[after.status] += 1
                if after.status.is_finished:
                    self._recent[after.id] = JobState(after.endpoint, after.status, outcome=after.outcome)
                    if len(self._recent) > RECENT:
                        del self._recent[next(iter(self._recent))]
                else:
                    self._states[after.id] = JobState(after.endpoint, after.status)
                if after.status is JobStatus.QUEUED:
                    self._join(after)

    def count(self, status: JobStatus, number: int) -> None:
        """Add rows that are not looked at one by one, as when a store opens."""
        with self._lock:
            self._counts[status] += number

    def state(self, job_id: str) -> JobState | None:
        """Where a job stands that has not ended, or only just; None for any other."""
        with self._lock:
            state = self._states.get(job_id) or self._recent.get(job_id)
            place = self._places.get(job_id)
            if state is None or place is None:
                return state
            return replace(state, position=int(self._order.bisect_left(place)))

    @property
    def length(self) -> int:
        """How many jobs wait."""
        with self._lock:
            return len(self._places)

    @property
    def quarantined(self) -> int:
        """How many of them were running when a worker died."""
        with self._lock:
            return len(self._quarantined)

    def counts(self) -> dict[JobStatus, int]:
        """Rows by state, every state named."""
        with self._lock:
            return {status: self._counts[status] for status in JobStatus}

    def _join(self, job: Job) -> None:
        place = (job.queue_rank, job.seq)
        self._places[job.id] = place
        self._order.add(place)
        if job.deaths:
            self._quarantined.add(job.id)

    def _leave(self, job_id: str) -> None:
        self._states.pop(job_id, None)
        self._recent.pop(job_id, None)
        self._quarantined.discard(job_id)
        place = self._places.pop(job_id, None)
        if place is not None:
            self._order.remove(place)


def state_of(job: Job | None) -> JobState | None:
    """Where a job that has been read stands."""
    return None if job is None else JobState(job.endpoint, job.status, outcome=job.outcome)
