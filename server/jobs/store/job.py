"""One job: its states, its row, how it ended, and what is submitted."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from server.jobs.store.kept_input import size_of_input

SHARED = ""
"""The tenant of what was asked for without a key: whoever is let in and knows its id may read it."""

LOW_PRIORITY_DELAY_S = 300.0
"""A low-priority job queues as if it had come this much later: it yields to newer normal jobs, but never starves."""


class JobStatus(StrEnum):
    """The states of a job. A request to cancel is a flag of the row, not a state."""

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
    """What became of a request to cancel."""

    CANCELLED = "cancelled"
    """It was waiting and has ended now."""
    REQUESTED = "requested"
    """It is running; the flag is set and its worker will drop it."""
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
class Repeat:
    """What a repeated submit is known by, within one tenant and endpoint.

    Args: name: the idempotency key its caller gave it, if any. digest: of everything it asks for.
    """

    name: str | None
    digest: bytes


@dataclass(frozen=True, slots=True)
class NewJob:
    """What a client submitted.

    Args:
        id: the request id, 122 random bits or more.
        endpoint: full endpoint id (`fal-ai/flux/dev`).
        input: the JSON object as it arrived.
        params: `GenerationParams.to_dict()`, seed decided; None when `outcome` is given.
        output: how to deliver: `format` (jpeg, png, webp), its `quality` if not ours, `sync_mode`, and what the
            endpoint's answer needs;
            `needs_inputs` if pictures or adapters must be fetched, or its prompt written out, first.
        priority: 0 normal, 1 low.
        start_within_s: fail with a timeout if it has not started by then.
        max_attempts: runs allowed for infrastructure faults (1 with no-retry).
        is_ephemeral: a synchronous run: it belongs to one open connection, so a node that restarts ends it.
        webhook_url: where to post the end.
        base_url: where files are found, for addresses in the webhook.
        store_io: False keeps no payloads: input and result body are erased after the retention the caller needs.
        hint_bucket: jobs of one bucket go to the same worker while it lives; None goes to any.
        tenant: whose it is; nobody else ever reads it, unless it is SHARED.
        key_id: of the key it was asked for with; empty without one.
        tags: its caller's labels, for usage and search.
        repeat: what it would be known by if it came again; None if each is a job of its own.
        is_repeatable: the same values draw the same pictures: its caller chose the seed, and nothing is fetched.
        picture_key: what its pictures follow from, if they may answer a later job.
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
    hint_bucket: int | None = None
    tenant: str = SHARED
    key_id: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    repeat: Repeat | None = None
    is_repeatable: bool = False
    picture_key: bytes | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One row, as read. Times are Unix seconds of the store's clock; `input` as `kept_input` says once it has ended."""

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
    hint_bucket: int | None
    tenant: str
    key_id: str
    tags: dict[str, str]
    has_begun: bool
    outcome: Outcome | None
    ahead_s: float = 0.0
    picture_key: bytes | None = None

    @property
    def input_size(self) -> int:
        """Bytes of it that its row takes, about."""
        return size_of_input(self.input)

    @property
    def queue_rank(self) -> float:
        """A tenant's waiting jobs are claimed in the order of (queue_rank, seq)."""
        return self.created_at + self.priority * LOW_PRIORITY_DELAY_S - self.ahead_s

    @property
    def needs_inputs(self) -> bool:
        """Whether something must be fetched before a worker can run it."""
        return bool(self.output.get("needs_inputs"))

    @property
    def model(self) -> str | None:
        """The model its params ask for."""
        return None if self.params is None else self.params.get("model")


def again(job: Job) -> NewJob:
    """The same request once more, as a job of its own."""
    return NewJob(
        id=str(uuid.uuid4()),
        endpoint=job.endpoint,
        input=job.input,
        params=job.params,
        output=job.output,
        priority=job.priority,
        max_attempts=job.max_attempts,
        webhook_url=job.webhook_url,
        base_url=job.base_url,
        store_io=job.store_io,
        hint_bucket=job.hint_bucket,
        tenant=job.tenant,
        key_id=job.key_id,
        tags=job.tags,
    )


class Standing(Protocol):
    """Of a job what an index of unfinished ones needs; a `Job`, or what another node tells of one."""

    @property
    def id(self) -> str: ...
    @property
    def seq(self) -> int: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def key_id(self) -> str: ...
    @property
    def status(self) -> JobStatus: ...
    @property
    def created_at(self) -> float: ...
    @property
    def queue_rank(self) -> float: ...
    @property
    def deaths(self) -> int: ...
    @property
    def params(self) -> dict[str, Any] | None: ...
    @property
    def input_size(self) -> int: ...
    @property
    def outcome(self) -> Outcome | None: ...


@dataclass(frozen=True, slots=True)
class JobState:
    """What a status poll asks of a job, and no more of the row.

    Args:
        endpoint, status, tenant, outcome: as in `Job`.
        position: waiting jobs that will be claimed before this one, as far as everybody's are alike; None when it
            does not wait.
    """

    endpoint: str
    status: JobStatus
    tenant: str = SHARED
    position: int | None = None
    outcome: Outcome | None = None

    def is_for(self, tenant: str | None) -> bool:
        """Whether that tenant may know of it; None is the server itself."""
        return tenant is None or self.tenant in (SHARED, tenant)
