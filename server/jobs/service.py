"""What the spoken APIs do with jobs: submit, cancel, wait for the end, read the log, run on an open connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from server.files import disk
from server.files.objects import ObjectsAwayError
from server.http.outgoing import ForbiddenAddressError
from server.http.pacing import Lanes
from server.jobs.forecast import Forecast
from server.jobs.limits import Allowance, least
from server.jobs.live import LiveJobs
from server.jobs.result_cache import ResultCache
from server.jobs.store.accounts import PauseKind
from server.jobs.store.base import Elsewhere, Store
from server.jobs.store.errors import (
    BudgetSpentError,
    DiskRefusedError,
    InDoubtError,
    InputsFullError,
    QueueFullError,
    RepeatMismatchError,
    StoreError,
)
from server.jobs.store.job import CancelOutcome, Job, JobState, JobStatus, NewJob, Outcome, again

LOOK_AGAIN_S = 10.0
"""A waiter asks the store this often, whatever it has heard: another node may have ended the job."""


class JobLostError(Exception):
    """The row of a job that was being waited for is gone."""


class WebhookRefusedError(Exception):
    """The webhook's address is one that would never be called; the sentence says why."""


class ServerStoppingError(Exception):
    """The server stops before the job of an open connection has ended; the job is cancelled."""


@dataclass(frozen=True, slots=True)
class JobService:
    """Jobs of one node.

    Args:
        max_queue: jobs that may wait; one more is refused.
        wake: tells the dispatcher that a job waits.
        forward_cancel: tells the worker of a running job to drop it.
        abandon: the same of one claim (its epoch), which the store has taken back.
        callers: ids of the jobs whose end an open connection waits for.
        note_refused_write: told when the store could not write.
        storage_problem: why what is submitted or drawn now could not be stored; None if it could.
        stopping: set when open connections must have their answer now.
        streams_end: the same for event streams, which would hold up a stop for as long as they are read.
        allowance: what each tenant may take.
        lanes: turns of the tenants' submits.
        sign: makes the relative address of a file one that can be handed out.
        cache: answers what is stored already; None draws everything.
        max_input_bytes: that large inputs of waiting requests take; None for any number.
        forecast: refuses what cannot be served within its own limits; None lets it wait.
        check_webhook: raises ForbiddenAddressError for an address that is known to be out of bounds; takes no time.
    """

    store: Store
    live: LiveJobs
    max_queue: int
    wake: Callable[[], None]
    forward_cancel: Callable[[str], None]
    note_refused_write: Callable[[], None]
    abandon: Callable[[str, int], None] = lambda job_id, epoch: None
    callers: set[str] = field(default_factory=set)
    storage_problem: Callable[[], str | None] = lambda: None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    streams_end: asyncio.Event = field(default_factory=asyncio.Event)
    allowance: Allowance = field(default_factory=Allowance)
    check_webhook: Callable[[str], None] = lambda url: None
    sign: Callable[[str], str] = lambda address: address
    lanes: Lanes = field(default_factory=Lanes)
    cache: ResultCache | None = None
    forecast: Forecast | None = None
    max_input_bytes: int | None = None

    def submit(self, new: NewJob, max_queued: int | None = None) -> Job:
        """Store a job durably and wake the dispatcher, or find the one that this submit repeats. Any thread.

        Args: max_queued: the caller's own limit on waiting jobs; the server's holds too.
        Raises: WebhookRefusedError, DiskRefusedError before anything is accepted that could not be finished;
            RateLimitedError, StorageFullError, QueueFullError, LateError, InputsFullError, BudgetSpentError,
            RepeatMismatchError, StoreError.
        """
        if new.webhook_url is not None:
            try:
                self.check_webhook(new.webhook_url)
            except ForbiddenAddressError as exc:
                raise WebhookRefusedError(str(exc)) from exc
        if (problem := self.storage_problem()) is not None:
            raise DiskRefusedError(problem)
        self.allowance.count_submit(new.tenant)
        job = self._stored(new, self.max_queue if max_queued is None else min(max_queued, self.max_queue))
        if job.id == new.id and job.tags:  # a repeated submit has logged them
            self.live.log(job.id, "tags: " + ", ".join(f"{name}={value}" for name, value in job.tags.items()))
        if job.id == new.id and job.outcome is not None:
            self.live.ended(job.id)  # an input that the model rejects ends as it is stored
        else:
            self.live.changed(job.id)
        self.wake()
        return job

    def _stored(self, new: NewJob, limit: int) -> Job:
        """Raises: QueueFullError, LateError, InputsFullError, BudgetSpentError, RepeatMismatchError, StoreError."""
        in_time = None if self.forecast is None else self.forecast.most_waiting(new, self._waiting())
        own, budgets = least(self.allowance.waiting(new.tenant), in_time), self.allowance.budgets(new.key_id)
        job: Job | None = None
        try:
            new = self._recalled(new)
            job = self.store.enqueue(new, limit, own, budgets, self.max_input_bytes)
        except QueueFullError as exc:
            if self.forecast is not None and in_time is not None and in_time == least(own, limit):
                raise self.forecast.late(new) from exc
            raise
        except (BudgetSpentError, InputsFullError, RepeatMismatchError):
            raise
        except InDoubtError as exc:
            # Its caller will ask again, and shall find it if it was stored.
            exc.answer.add_done_callback(lambda _: self.note_answer(new.id, False))
            raise
        except StoreError:
            self.note_refused_write()
            raise
        finally:
            if self.cache is not None and (job is None or job.id != new.id):
                self.cache.discard(new)
        return job

    def _waiting(self) -> int:
        return self.store.counts()[JobStatus.QUEUED]

    def note_begun(self, job_id: str) -> None:
        """A job has begun, here or at another node. Any thread."""
        if self.forecast is None:
            return
        with suppress(StoreError):
            if (state := self.store.known(job_id)) is not None:
                self.forecast.note_start(self._waiting(), state.tenant)

    def _recalled(self, new: NewJob) -> NewJob:
        """The job, answered if its pictures are stored. Raises: StoreError."""
        if self.cache is None:
            return new
        try:
            return self.cache.answered(new)
        except ObjectsAwayError:
            return new  # it is drawn again, when what is drawn can be kept
        except OSError as exc:
            raise DiskRefusedError(disk.describe(exc)) from exc

    def note_answer(self, job_id: str, is_delivered: bool) -> None:
        """Whether the answer to its submit could be written: if not, the same submit gets the same answer again."""
        with suppress(StoreError):
            self.store.note_answer(job_id, is_delivered)

    def cancel(self, job_id: str) -> CancelOutcome:
        """Cancel a waiting job, or tell its worker to drop it before the next step. Any thread. Raises: StoreError."""
        outcome, _ = self.store.request_cancel(job_id)
        if outcome is CancelOutcome.REQUESTED:
            self.forward_cancel(job_id)
            self.live.changed(job_id)
        elif outcome is CancelOutcome.CANCELLED:
            self.live.ended(job_id)
        return outcome

    def requeue(self, job_id: str) -> Job | None:
        """Have a job run again: what runs is taken from its worker, and what failed or was cancelled, whose end stands,
        is stored once more under an id of its own. None if it waits, has its pictures, or cannot be drawn.

        Raises: StoreError, and what a submit raises."""
        job = self.store.get(job_id)
        if job is None or job.params is None:
            return None
        if job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            return self.submit(again(job))
        if job.owner is None or not self.store.release_one(job_id, job.owner, job.epoch):
            return None
        self.abandon(job_id, job.epoch)
        self.live.log(job_id, "taken from its worker by the operator", "WARN")
        self.live.start_over(job_id)
        after = self.store.get(job_id)
        if after is not None and after.status.is_finished:
            self.live.ended(job_id)
        self.wake()
        return after

    def prioritise(self, job_id: str) -> Job | None:
        """Move a waiting job to the front of its tenant's line; None if it does not wait. Raises: StoreError."""
        job = self.store.prioritise(job_id)
        if job is not None:
            self.live.log(job_id, "moved to the front by the operator")
            self.wake()
        return job

    def resume(self, kind: PauseKind, name: str) -> bool:
        """Claim what was paused again; False if it was not. Raises: StoreError."""
        was_paused = self.store.resume(kind, name)
        self.wake()
        return was_paused

    def note_elsewhere(self, changed: Sequence[Elsewhere]) -> None:
        """Another node has changed jobs: whoever watches them here looks again, a worker of ours that runs one whose
        cancel was asked for there drops it, and what waits may be claimed here. Any thread."""
        for job in changed:
            self.live.changed_elsewhere(job.job_id, job.status.is_finished)
            if job.cancel_requested and job.status is JobStatus.RUNNING:
                self.forward_cancel(job.job_id)
        if any(job.status is JobStatus.QUEUED for job in changed):
            self.wake()

    async def state(self, job_id: str, tenant: str | None = None) -> JobState | None:
        """See `Store.state`. What must be read is read beside the event loop, which no store may hold up."""
        return self.store.known(job_id, tenant) or await asyncio.to_thread(self.store.state, job_id, tenant)

    async def wait_finished(self, job_id: str, timeout_s: float | None = None) -> Job | None:
        """The row once it has ended; None if it has not in time, or is unknown."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            seen = self.live.version(job_id)
            known = self.store.known(job_id)
            if known is None or known.status.is_finished:  # only now its row is read, and not on the loop
                job = await asyncio.to_thread(self.store.get, job_id)
                if job is None or job.status.is_finished:
                    return job
            left_s = LOOK_AGAIN_S if deadline is None else min(LOOK_AGAIN_S, deadline - time.monotonic())
            if left_s <= 0:
                return None
            await self.live.wait(job_id, seen, left_s)

    def logs(self, job_id: str, outcome: Outcome | None) -> list[dict[str, Any]]:
        """The log to show for a job: the recorded one if there is one, else the live one."""
        return outcome.logs if outcome is not None and outcome.logs else self.live.logs(job_id)

    async def run(self, new: NewJob, max_queued: int | None = None, is_stream: bool = False) -> Outcome:
        """Submit a job that belongs to one open connection and wait for its end. Cancelling this cancels the job.

        Args: is_stream: whether its progress is streamed, so that a stop ends it as early as other streams.

        Raises: what the submit does; JobLostError if the row is gone; ServerStoppingError.
        """
        submitted = asyncio.ensure_future(self._submit_in_turn(new, max_queued))
        self.callers.add(new.id)
        try:
            await asyncio.shield(submitted)
            job = await self._wait_unless(self.streams_end if is_stream else self.stopping, new.id)
        except (asyncio.CancelledError, ServerStoppingError):
            await asyncio.shield(self._take_back(new.id, submitted))
            raise
        finally:
            self.callers.discard(new.id)
        if job is None or job.outcome is None:
            raise JobLostError(new.id)
        return job.outcome

    async def _submit_in_turn(self, new: NewJob, max_queued: int | None) -> Job:
        async with self.lanes.turn(new.tenant):
            return await asyncio.to_thread(self.submit, new, max_queued)

    async def _wait_unless(self, stopping: asyncio.Event, job_id: str) -> Job | None:
        """The row once it has ended. Raises: ServerStoppingError."""
        end, stop = asyncio.ensure_future(self.wait_finished(job_id)), asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait((end, stop), return_when=asyncio.FIRST_COMPLETED)
            if not end.done():
                raise ServerStoppingError(job_id)
            return end.result()
        finally:
            end.cancel()
            stop.cancel()

    async def _take_back(self, job_id: str, submitted: asyncio.Future[Job]) -> None:
        """Cancel a job whose submit may still be under way: a cancel before it is stored would find nothing."""
        await asyncio.wait({submitted})
        if submitted.exception() is None:
            await asyncio.to_thread(self.cancel, job_id)
