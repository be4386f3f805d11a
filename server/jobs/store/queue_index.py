"""The jobs that have not ended, and the last that have, in memory: a poll costs a look-up, a place a bisection.

No row is read for it, and nothing is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

from server.jobs.store.base import Backlog
from server.jobs.store.fair import Place, TenantLines, Turns, work
from server.jobs.store.job import Job, JobState, JobStatus, Standing
from server.jobs.store.kept_input import MAX_CHARACTERS

LARGE_INPUT = MAX_CHARACTERS
"""An input of more bytes than this brings pictures; only such are counted."""

RECENT = 64
"""Ended jobs kept: everybody who polls learns of an end at about the same time. Few, as a result may hold pictures."""


class QueueIndex:
    """Which jobs wait, in which order, which run, and how many are in each state; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lines = TenantLines()
        self._places: dict[str, Place] = {}
        self._states: dict[str, JobState] = {}
        """Of all that have not ended; positions are not in here, because those of others change them."""
        self._recent: dict[str, JobState] = {}
        """Of the last that ended, oldest first."""
        self._since: dict[str, float] = {}
        """When each that waits was submitted."""
        self._large: dict[str, tuple[str, int]] = {}
        """Of each that waits with a large input its tenant and the input's bytes."""
        self._quarantined: set[str] = set()
        self._counts: Counter[JobStatus] = Counter()

    def change(self, before: Standing | None, after: Standing | None) -> None:
        """Take note that a committed change turned `before` into `after`; None is a row that does not exist."""
        with self._lock:
            if after is not None and after.status is JobStatus.RUNNING:
                self._run(before, after)  # first: who neither waits nor runs is forgotten
            if before is not None:
                self._counts[before.status] -= 1
                self._leave(before)
            if after is not None:
                self._counts[after.status] += 1
                if after.status.is_finished:
                    if after.outcome is None:
                        return  # ended by another node: whoever asks reads the row
                    self._recent[after.id] = JobState(after.endpoint, after.status, after.tenant, None, after.outcome)
                    if len(self._recent) > RECENT:
                        del self._recent[next(iter(self._recent))]
                else:
                    self._states[after.id] = JobState(after.endpoint, after.status, after.tenant)
                if after.status is JobStatus.QUEUED:
                    self._join(after)

    def count(self, status: JobStatus, number: int) -> None:
        """Add rows that are not looked at one by one, as when a store opens."""
        with self._lock:
            self._counts[status] += number

    def forget(self, job_id: str, status: JobStatus) -> None:
        """A job that had ended is deleted."""
        with self._lock:
            self._counts[status] -= 1
            self._recent.pop(job_id, None)

    def state(self, job_id: str, tenant: str | None = None) -> JobState | None:
        """Where a job stands that has not ended, or only just, if it is that tenant's; None for any other."""
        with self._lock:
            state = self._states.get(job_id) or self._recent.get(job_id)
            if state is None or not state.is_for(tenant):
                return None
            place = self._places.get(job_id)
            return state if place is None else replace(state, position=self._lines.position(state.tenant, place))

    def turns(self, now: float, at_most: Callable[[str], int | None] | None = None) -> Turns:
        """See TenantLines."""
        with self._lock:
            return self._lines.turns(now, at_most)

    @property
    def length(self) -> int:
        """How many jobs wait."""
        with self._lock:
            return len(self._places)

    @property
    def oldest_at(self) -> float | None:
        """When the oldest that waits was submitted; walks through all of them."""
        with self._lock:
            return min(self._since.values(), default=None)

    def length_of(self, tenant: str) -> int:
        """How many of one tenant's jobs wait."""
        with self._lock:
            return self._lines.length(tenant)

    def large_inputs(self, tenant: str) -> tuple[int, int]:
        """Bytes of the large inputs that wait: of all, and of one tenant."""
        with self._lock:
            large = tuple(self._large.values())
        return sum(size for _, size in large), sum(size for whose, size in large if whose == tenant)

    @property
    def quarantined(self) -> int:
        """How many of them were running when a worker died."""
        with self._lock:
            return len(self._quarantined)

    def counts(self) -> dict[JobStatus, int]:
        """Rows by state, every state named."""
        with self._lock:
            return {status: self._counts[status] for status in JobStatus}

    def _join(self, job: Standing) -> None:
        place = (job.queue_rank, job.seq)
        self._places[job.id] = place
        self._since[job.id] = job.created_at
        self._lines.join(job.tenant, place)
        if job.deaths:
            self._quarantined.add(job.id)
        if (size := job.input_size) > LARGE_INPUT:
            self._large[job.id] = job.tenant, size

    def _run(self, before: Standing | None, after: Standing) -> None:
        if before is not None and before.status is JobStatus.QUEUED:
            self._lines.start(after.tenant, work(after))
        else:
            self._lines.resume(after.tenant)

    def _leave(self, job: Standing) -> None:
        self._states.pop(job.id, None)
        self._recent.pop(job.id, None)
        self._quarantined.discard(job.id)
        self._large.pop(job.id, None)
        if job.status is JobStatus.RUNNING:
            self._lines.stop(job.tenant)
        self._since.pop(job.id, None)
        place = self._places.pop(job.id, None)
        if place is not None:
            self._lines.leave(job.tenant, place)


def has_room(large_inputs: tuple[int, int], size: int, most: int | None) -> bool:
    """Whether an input may wait beside the large ones: a tenant may fill as much as it leaves free, so that others find
    room, whoever fills it. A small one always may: how many wait is bounded elsewhere. So may one that waits alone:
    no room comes for it when others go."""
    of_all, own = large_inputs
    return most is None or size <= LARGE_INPUT or not of_all or own + size <= most - of_all - size


def state_of(job: Job | None) -> JobState | None:
    """Where a job that has been read stands."""
    return None if job is None else JobState(job.endpoint, job.status, job.tenant, None, job.outcome)


def backlog_of(oldest_at: float | None, webhooks: int, first_due: float | None, now: float) -> Backlog:
    """What waits at this moment."""
    waited_s, late_s = (0.0 if at is None else max(0.0, now - at) for at in (oldest_at, first_due))
    return Backlog(waited_s, webhooks, late_s)
