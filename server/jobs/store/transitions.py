"""The rules by which a row may change: pure functions from a job to the job it becomes.

    queued -> running -> completed | failed | cancelled
       ^_________|   (released)

A store decides *when* a rule applies and makes the change atomic; what the change is stands only here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from server.jobs.store import platform_outcomes
from server.jobs.store.base import MAX_DEATHS, MAX_LONE_DEATHS
from server.jobs.store.job import Job, JobStatus, NewJob, Outcome
from server.jobs.store.kept_input import kept

MAX_RETRIES = 9
"""Retries of one cause that a request may ask for."""

MAX_STARTS = 10
"""Workers that may die before they begin any of what they hold, until what they held fails."""

MAX_CLAIMS = 100
"""Claims of one job until it fails when the next node dies: something about it must be what ends nodes."""


def created(new: NewJob, seq: int, now: float) -> Job:
    """The first row of a job: waiting, or ended at once if it brings its outcome."""
    job = Job(
        id=new.id,
        seq=seq,
        endpoint=new.endpoint,
        input=new.input,
        params=new.params,
        output=new.output,
        status=JobStatus.QUEUED,
        priority=new.priority,
        created_at=now,
        start_deadline=None if new.start_within_s is None else now + new.start_within_s,
        started_at=None,
        finished_at=None,
        owner=None,
        epoch=0,
        attempt=0,
        max_attempts=new.max_attempts,
        deaths=0,
        lone_deaths=0,
        lease_until=None,
        cancel_requested=False,
        is_ephemeral=new.is_ephemeral,
        webhook_url=new.webhook_url,
        base_url=new.base_url,
        store_io=new.store_io,
        hint_bucket=new.hint_bucket,
        tenant=new.tenant,
        key_id=new.key_id,
        tags=new.tags,
        picture_key=new.picture_key,
        has_begun=False,
        outcome=None,
    )
    return job if new.outcome is None else ended(job, new.outcome, now)


def claimed(job: Job, owner: str, now: float, lease_s: float) -> Job:
    """A waiting job, taken by `owner`."""
    return replace(
        job,
        status=JobStatus.RUNNING,
        owner=owner,
        epoch=job.epoch + 1,
        attempt=job.attempt + 1,
        lease_until=now + lease_s,
        started_at=now,
    )


def moved_before(job: Job, first: Job) -> Job:
    """A waiting job at the front of its tenant's line, whose first was `first`."""
    if job.seq == first.seq:
        return job
    return replace(job, ahead_s=job.ahead_s + job.queue_rank - first.queue_rank + 1.0)


def ended(job: Job, outcome: Outcome, now: float) -> Job:
    """An unfinished job, ended, without what was large in its input."""
    return replace(
        job,
        input=kept(job.input),
        status=outcome.status,
        outcome=outcome,
        owner=None,
        lease_until=None,
        finished_at=now,
    )


def is_current(job: Job | None, owner: str, epoch: int) -> bool:
    """Whether this claim still holds the job; otherwise the caller's claim is stale."""
    return job is not None and job.status is JobStatus.RUNNING and job.owner == owner and job.epoch == epoch


def begun(job: Job) -> Job:
    """A running job whose worker has begun it."""
    return replace(job, has_begun=True)


def released_unused(job: Job, now: float) -> Job:
    """A running job whose claim is given up, through no fault of its own: it waits again, with its attempt back."""
    return _waiting_again(replace(job, attempt=job.attempt - 1), now)


def attempt_failed(job: Job, now: float) -> Job:
    """A running job whose attempt was used up by a fault that counts no death."""
    return _waiting_again_below(job, job.max_attempts, now)


def worker_died(job: Job, is_lone: bool, now: float) -> Job:
    """A running job whose worker died; `is_lone` if nothing else was running there."""
    marked = replace(job, deaths=job.deaths + 1, lone_deaths=job.lone_deaths + is_lone)
    is_poison = marked.deaths >= MAX_DEATHS or marked.lone_deaths >= MAX_LONE_DEATHS
    is_enough = is_poison or not may_run_again(job.output, "connection_error", marked.deaths)
    if is_enough and not job.cancel_requested:
        return ended(marked, platform_outcomes.runner_disconnected(), now)
    return attempt_failed(marked, now)


def node_died(job: Job, now: float) -> Job:
    """A running job of a node that is gone. What ends a node is not what it serves, so no attempt is used up; only a
    job that may run once, and had begun, has had its run."""
    if (job.has_begun or job.epoch >= MAX_CLAIMS) and not job.cancel_requested:
        return ended(job, platform_outcomes.runner_disconnected(), now)
    return released_unused(job, now)


def released(jobs: Iterable[Job], died: bool, not_started: frozenset[str], now: float) -> list[tuple[Job, Job]]:
    """All running jobs of one owner as (before, after), by the rule of `Store.release`."""
    running = list(jobs)
    suspects = [job for job in running if died and job.id not in not_started]

    def after(job: Job) -> Job:
        if job in suspects:
            return worker_died(job, len(suspects) == 1, now)
        if died and not suspects:
            # One of these may be what kills workers before they begin it, so this is not repeated for ever.
            return _waiting_again_below(job, max(job.max_attempts, MAX_STARTS), now)
        return released_unused(job, now)

    return [(job, after(job)) for job in running]


def may_repeat(job: Job) -> bool:
    """Whether a job may run again after a worker has died on it."""
    return job.max_attempts > 1 and may_run_again(job.output, "connection_error", 1)


def may_run_again(output: dict[str, Any], cause: str, faults: int) -> bool:
    """Whether a job with these output options may run again after so many faults of one cause."""
    return faults <= int(output.get("retries", {}).get(cause, MAX_RETRIES))


def _waiting_again_below(job: Job, limit: int, now: float) -> Job:
    """The job waits again, or has failed with its `limit`-th attempt."""
    if job.attempt >= limit and not job.cancel_requested:
        return ended(job, platform_outcomes.runner_disconnected(), now)
    return _waiting_again(job, now)


def _waiting_again(job: Job, now: float) -> Job:
    if job.cancel_requested:
        return ended(job, platform_outcomes.cancelled(), now)
    return replace(job, status=JobStatus.QUEUED, owner=None, lease_until=None, started_at=None, has_begun=False)
