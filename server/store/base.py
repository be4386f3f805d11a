"""The durable table of jobs: its states, its rows, and what every store guarantees."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class JobStatus(StrEnum):
    """Where a job stands. A wish to cancel is a flag of the row, not a state."""

    QUEUED = "queued"
    """Waits for a worker; also again after its worker died."""
    RUNNING = "running"
    """Claimed by an owner under a lease."""
    COMPLETED = "completed"
    """Ended with pictures."""
    FAILED = "failed"
    """Ended without."""
    CANCELLED = "cancelled"
    """Ended because the client asked."""

    @property
    def is_finished(self) -> bool:
        return self in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED)


class CancelOutcome(StrEnum):
    """What became of a wish to cancel."""

    CANCELLED = "cancelled"
    """It was waiting and has ended now."""
    REQUESTED = "requested"
    """It is running; the flag is set and the owner will be told."""
    ALREADY_FINISHED = "already_finished"
    NOT_FOUND = "not_found"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended, exactly as its result address will answer from now on.

    Args:
        status: COMPLETED, FAILED or CANCELLED.
        http_status: of the result answer.
        body: JSON object of the result answer; file addresses in it are relative (`/files/...`).
        error, error_type: for the status answer of a failed job; None when it went well.
        metrics: at least `inference_time` in seconds (or None) for a job that ran.
        logs: the job's whole log, entries in fal's form.
    """

    status: JobStatus
    http_status: int
    body: dict[str, Any]
    error: str | None = None
    error_type: str | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    logs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client submitted.

    Args:
        id: the request id, 122 random bits or more.
        endpoint: full endpoint id (`fal-ai/flux/dev`).
        input: the JSON object as it arrived.
        params: `GenerationParams.to_dict()`, seed decided; None when `outcome` is given.
        output: how to deliver: `format` (jpeg, png, webp), `sync_mode`, and what the endpoint's answer needs.
        priority: 0 normal, 1 low.
        start_within_s: fail with a timeout if it has not started by then.
        max_attempts: runs allowed for infrastructure faults (1 with no-retry).
        is_ephemeral: a synchronous run: it belongs to one open connection, so a node that restarts ends it.
        webhook_url: where to post the end.
        base_url: scheme, host and prefix the caller used, for addresses in the webhook.
        store_io: False keeps no payloads: input and result body are erased after the retention the caller needs.
        outcome: set when the job ends in the moment it is stored (input the model rejects).
    """

    id: str
    endpoint: str
    input: dict[str, Any]
    params: dict[str, Any] | None
    output: dict[str, Any] = field(default_factory=dict)
    priority: int = 0
    start_within_s: float | None = None
    max_attempts: int = 10
    is_ephemeral: bool = False
    webhook_url: str | None = None
    base_url: str = ""
    store_io: bool = True
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One row, as read. Times are Unix seconds of the store's clock."""

    id: str
    seq: int
    endpoint: str
    input: dict[str, Any]
    params: dict[str, Any] | None
    output: dict[str, Any]
    status: JobStatus
    priority: int
    created_at: float
    start_deadline: float | None
    started_at: float | None
    finished_at: float | None
    owner: str | None
    epoch: int
    attempt: int
    max_attempts: int
    deaths: int
    lone_deaths: int
    lease_until: float | None
    cancel_requested: bool
    is_ephemeral: bool
    webhook_url: str | None
    base_url: str
    store_io: bool
    outcome: Outcome | None


class StoreError(Exception):
    """The store cannot do what was asked (disk full, file damaged); nothing was half done."""


class QueueFullError(StoreError):
    """More jobs wait than the caller or the server allows; nothing was stored."""


class Store(Protocol):
    """Every method is one atomic decision, synchronous and short, and may be called from any thread.

    A job that `enqueue` acknowledged survives kill -9 and power loss, and ends exactly once. Only the store's
    clock counts for leases and deadlines.
    """

    def enqueue(self, new: NewJob, max_queued: int | None = None) -> Job:
        """Store a job durably; returns after the commit.

        Raises: QueueFullError when more than `max_queued` jobs wait already. StoreError.
        """

    def get(self, job_id: str) -> Job | None:
        """The row, or None."""

    def queue_position(self, job_id: str) -> int | None:
        """Waiting jobs that will be claimed before this one, 0-based; None when it does not wait.

        Cheap: called for every poll of every waiting client."""

    def claim(self, owner: str, limit: int, lease_s: float, models: frozenset[str] | None = None) -> list[Job]:
        """Take up to `limit` waiting jobs: running, `owner`, `epoch + 1`, `attempt + 1`, `lease_until`, atomically.

        Order: priority (normal first, but a low one older than the age bound counts as normal), then age.
        Only jobs of the given models, if given. Jobs past their start deadline are not claimed
        (`expire` ends them)."""

    def renew(self, owner: str, lease_s: float) -> list[Job]:
        """Extend the leases of all running jobs of `owner`; returns those whose cancel was requested."""

    def finish(self, job_id: str, owner: str, epoch: int, outcome: Outcome) -> bool:
        """End a running job and write its webhook row, in one transaction.

        Returns: False, and changes nothing, if this claim is not the current one (the caller is a zombie)."""

    def release(self, owner: str, died: bool) -> list[Job]:
        """Give up all claims of `owner`: jobs wait again in their old place, or end.

        With `died`, counts a death for each (a lone death if it was the only one running); a job that was
        running at three deaths or two lone ones, or that has no attempt left, fails as
        `runner_disconnected` (503); one whose cancel was requested is cancelled.
        Returns: the rows after the change."""

    def release_one(self, job_id: str, owner: str, epoch: int) -> bool:
        """Give up one claim without blame (an internal fault of the worker); False if it is not current."""

    def expire(self) -> list[Job]:
        """End waiting jobs past their start deadline (504 `request_timeout`) and release expired leases
        as died; returns the changed rows."""

    def request_cancel(self, job_id: str) -> tuple[CancelOutcome, Job | None]:
        """Cancel at once if waiting, flag if running; idempotent."""

    def counts(self) -> dict[JobStatus, int]:
        """Rows by state, cheap enough for /metrics."""

    def end_ephemeral(self) -> int:
        """At start-up: cancel unfinished synchronous runs, whose connections are gone. Returns how many."""

    def sweep(self, retention_s: float) -> list[str]:
        """Delete rows finished longer ago than that; returns their ids, so that their files can go too."""

    def due_webhooks(self, limit: int) -> list[WebhookDelivery]:
        """Deliveries whose time has come, oldest first."""

    def settle_webhook(self, job_id: str, delivered: bool, next_in_s: float | None, note: str) -> None:
        """Record one try: delivered, or again in `next_in_s`, or given up (None)."""

    def close(self) -> None:
        """Release the file; later calls raise StoreError."""


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One outbox row: which job, where to, how many tries so far, what the last one saw."""

    job_id: str
    url: str
    tries: int
    note: str
