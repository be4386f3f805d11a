"""The durable table of jobs: its states, its rows, and what every store guarantees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from server.jobs.store.accounts import Ended, Pause, PauseKind, Search, Usage, UsageQuestion
    from server.jobs.store.budgets import Budget

SHARED = ""
"""The tenant of what was asked for without a key: whoever is let in and knows its id may read it."""

LOW_PRIORITY_DELAY_S = 300.0
"""A low-priority job queues as if it had come this much later: it yields to newer normal jobs, but never starves."""

PRIVATE_RETENTION_S = 3600.0
"""How long after its end a job with `store_io` off is kept, so that its caller can still fetch the result."""

HINT_BUCKETS = 64
"""Runner hints share so many buckets; each belongs to one worker at a time."""

MAX_DEATHS = 3
"""A job that was running at so many deaths of its worker fails instead of running again."""

MAX_LONE_DEATHS = 2
"""The same, for deaths at which nothing else was running: then the job itself is the likely cause."""


NAMED_KEPT_S = 86400.0
"""How long a submit with an idempotency key is known by it."""

UNDELIVERED_KEPT_S = 120.0
"""How long a submit whose answer could not be delivered is known by what it asks for."""

TRIES_KEPT = 50
"""So many tries of one webhook stay in the delivery log, the newest."""

LOG_KEPT_S = 30 * 86400.0
"""Tries older than this leave the delivery log; that may be long after the job itself is gone."""

LONGEST_PAUSE_S = 2400.0
"""Between two tries of one webhook, at most."""

LOG_ROWS = 100_000
"""And so do the oldest, beyond this many."""


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


class Redelivery(StrEnum):
    """What became of an order to deliver a webhook again."""

    ORDERED = "ordered"
    """It is due now, with all its tries before it."""
    NOT_FINISHED = "not_finished"
    """The job has not ended; its webhook goes out when it does."""
    NO_WEBHOOK = "no_webhook"
    """The job named none."""
    FORGOTTEN = "forgotten"
    """The log tells of it, but the result that it would carry is no longer kept."""
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
    hint_bucket: int | None
    tenant: str
    key_id: str
    tags: dict[str, str]
    has_begun: bool
    outcome: Outcome | None
    ahead_s: float = 0.0
    picture_key: bytes | None = None

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


Verdict = Literal["delivered", "again", "given up"]
"""How a try to deliver a webhook ended."""


class StoreError(Exception):
    """The store cannot do what was asked (disk full, file damaged); nothing was half done."""


class DiskRefusedError(StoreError):
    """There is no room, or no right to write; nothing was stored."""


class QueueFullError(StoreError):
    """More jobs wait than the caller or the server allows; nothing was stored."""


class BudgetSpentError(StoreError):
    """A budget of the key has no room for the job; nothing was stored. The sentence says which."""


class RepeatMismatchError(StoreError):
    """The idempotency key has been given to a submit that asks for something else; nothing was stored."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Args: oldest_s: how long the oldest waiting job waits; 0 without one. webhooks: that are still owed.
    webhook_late_s: how long the one that is due longest has been due."""

    oldest_s: float
    webhooks: int
    webhook_late_s: float


class Store(Protocol):
    """Every method is one atomic decision, synchronous and short, and may be called from any thread.

    A job that `enqueue` acknowledged survives kill -9 and power loss, and ends exactly once. Only the store's
    clock counts for leases and deadlines.
    """

    def enqueue(
        self,
        new: NewJob,
        max_queued: int | None = None,
        max_own: int | None = None,
        budgets: Sequence[Budget] = (),
    ) -> Job:
        """Store a job durably; returns after the commit.

        A submit that repeats an earlier one (`Repeat`: the same name within NAMED_KEPT_S; without one the same
        digest within UNDELIVERED_KEPT_S, if the answer to the first could not be delivered) stores nothing and
        returns that one's row, in any state.

        Raises: RepeatMismatchError; QueueFullError when `max_queued` jobs or more wait already, or `max_own` of its
            tenant; BudgetSpentError when one of its key's `budgets` has no room for it; StoreError.
        """

    def note_answer(self, job_id: str, is_delivered: bool) -> None:
        """The answer to its submit was written to the connection, or could not be. Returns at once; survives kill -9
        soon after. A node that dies before counts as one that could not answer."""

    def get(self, job_id: str) -> Job | None:
        """The row, or None."""

    def state(self, job_id: str, tenant: str | None = None) -> JobState | None:
        """Its status, place in the queue and outcome, or None if it is unknown.

        With `tenant`, what is another tenant's is unknown, and found to be so in the same way and time.
        Cheap until the job has ended: every waiting client asks up to ten times a second."""

    def claim(
        self,
        owner: str,
        limit: int,
        lease_s: float,
        models: frozenset[str] | None = None,
        quarantined: bool | None = None,
        buckets: frozenset[int] | None = None,
        at_most: Callable[[str], int | None] | None = None,
    ) -> list[Job]:
        """Take up to `limit` waiting jobs: running, `owner`, `epoch + 1`, `attempt + 1`, `lease_until`, atomically.

        Order: every tenant in turn (see `fair`); a tenant's own by age, where a low-priority job counts as
        LOW_PRIORITY_DELAY_S younger than it is. A tenant of which `at_most` so many may run waits meanwhile.
        With `quarantined`, only jobs with deaths (each runs alone, so that one which crashes workers is found); with
        False, only jobs without. Only jobs of the given models, and of the given hint buckets or none, if given.
        Jobs past their start deadline are not claimed (`expire` ends them), nor those of a paused model or key."""

    def waiting_for_others(self, models: frozenset[str]) -> dict[str, str]:
        """Waiting jobs of other models than these: id -> model. Walks through all that wait."""

    def quarantined(self) -> int:
        """How many waiting jobs have deaths. Cheap: asked before every claim."""

    def now(self) -> float:
        """Unix seconds of the store's clock."""

    def note_begun(self, job_id: str, owner: str, epoch: int) -> None:
        """The worker has begun a job that may run only once; survives kill -9. Nothing if the claim is not current."""

    def renew(self, owner: str, lease_s: float) -> list[Job]:
        """Extend the leases of all running jobs of `owner`; returns those whose cancel was requested."""

    def finish(self, job_id: str, owner: str, epoch: int, outcome: Outcome) -> bool:
        """End a running job and write its webhook row, in one transaction.

        Returns: False, and changes nothing, if this claim is not the current one: the epoch fences off stale claims."""

    def release(
        self,
        owner: str,
        died: bool,
        not_started: frozenset[str] = frozenset(),
        keep: frozenset[str] = frozenset(),
    ) -> list[Job]:
        """Give up all claims of `owner` but those to `keep`: jobs wait again in their old place, or end.

        With `died`, counts a death for each that is not `not_started` (ids that the worker had not begun), a lone
        death if it was the only such one; a job that was running at MAX_DEATHS deaths or MAX_LONE_DEATHS lone
        ones, or that has no attempt left, fails as `runner_disconnected` (503). Those that had not begun, and all
        without `died`, have their attempt back; but where none had begun it counts, up to ten, since one of them may be
        the cause. A job whose cancel was requested is cancelled either way.
        Returns: the rows after the change."""

    def release_one(self, job_id: str, owner: str, epoch: int) -> bool:
        """Give up one claim after an internal fault of the worker: no death is counted, but the attempt is used.

        The job fails as `runner_disconnected` if that was its last, and is cancelled if that was requested.
        Returns: False, and changes nothing, if this claim is not the current one."""

    def expire(self, living: frozenset[str] = frozenset()) -> list[Job]:
        """End waiting jobs past their start deadline (504 `request_timeout`) and release expired leases
        as died; returns the changed rows.

        Leases of `living` owners are left alone: the caller knows better than any clock."""

    def request_cancel(self, job_id: str) -> tuple[CancelOutcome, Job | None]:
        """Cancel at once if waiting, flag if running; idempotent."""

    def counts(self) -> dict[JobStatus, int]:
        """Rows by state, cheap enough for /metrics."""

    def backlog(self) -> Backlog:
        """What waits, for /metrics: once in some seconds."""

    def recover(self) -> list[Job]:
        """At start-up: give up every claim, because all owners died with the node that was here before.

        Counts no death and uses no attempt: what ends a node is not what it serves. A job that `note_begun` marked has
        had its only run and fails. A store that several nodes share leaves this to the leases and returns nothing.
        Returns: the rows after the change."""

    def end_ephemeral(self) -> int:
        """At start-up: cancel unfinished synchronous runs, whose connections are gone. Returns how many."""

    def sweep(self, retention_s: float) -> list[str]:
        """Delete rows finished longer ago than that (PRIVATE_RETENTION_S if `store_io` is off); returns their ids.

        Trims the delivery log, too."""

    def delete(self, job_id: str) -> Job | None:
        """Delete an ended job with all that hangs on it, a webhook that is still due as well; usage stays.

        Returns: the row as it was, or None, and changes nothing, if there is none or it has not ended."""

    def unfinished_inputs(self, containing: str) -> list[str]:
        """The inputs, as JSON texts, of jobs that have not ended, as far as they contain that text."""

    def newest_at(self) -> float | None:
        """When the last job was stored; None if there is none."""

    def pause(self, kind: PauseKind, name: str) -> None:
        """Claim nothing of this model, or of what was asked for with this key, until `resume`. Survives a restart."""

    def resume(self, kind: PauseKind, name: str) -> bool:
        """Claim it again; False if it was not paused."""

    def pauses(self) -> list[Pause]:
        """What is paused, by kind and name."""

    def prioritise(self, job_id: str) -> Job | None:
        """Move a waiting job to the front of its tenant's line; None, and nothing, if it does not wait."""

    def find(self, search: Search, limit: int) -> list[Job]:
        """Up to so many jobs, the newest first."""

    def ended(self, search: Search, limit: int) -> list[Ended]:
        """How up to so many of the jobs found went, the newest first, as far as they have ended; reads no payloads."""

    def usage(self, question: UsageQuestion, limit: int, offset: int = 0) -> list[Usage]:
        """A page of what was drawn, by day, tenant, endpoint, key and label; counted when a job ends, once, and kept
        when the job is gone."""

    def drawn(self, new: NewJob) -> Job | None:
        """The newest completed job of its tenant with its `picture_key` whose payloads are kept."""

    def units_since(self, key_id: str, first_day: int) -> Mapping[str, int]:
        """Megapixels by endpoint: what a key has used since that day, and what its unfinished jobs will use."""

    def due_webhooks(self, limit: int, per_receiver: int | None = None) -> list[WebhookDelivery]:
        """Deliveries whose time has come, oldest first.

        With `per_receiver` at most so many of one host and port, and receivers in turn: the oldest of each, then the
        second of each, so that what one is owed hides nobody's."""

    def settle_webhook(self, delivery: WebhookDelivery, answer: WebhookAnswer, next_in_s: float | None) -> None:
        """Log one try: delivered, or again in `next_in_s`, or given up (None).

        The delivery is as `due_webhooks` gave it: if it was ordered again since, that order stands."""

    def webhooks(self, limit: int) -> list[WebhookDelivery]:
        """Deliveries of ended jobs, those of the newest jobs first, settled ones too."""

    def webhook(self, job_id: str) -> WebhookDelivery | None:
        """The delivery of one job; None if none is due (yet) or the job is unknown."""

    def webhook_tries(self, job_id: str) -> list[WebhookTry]:
        """The log of one job's deliveries, oldest try first: at most TRIES_KEPT, for LOG_KEPT_S and LOG_ROWS in all.

        It outlives the job."""

    def redeliver_webhook(self, job_id: str) -> Redelivery:
        """Have a webhook delivered again, whether it was taken, given up or is still being tried."""

    @property
    def problem(self) -> str | None:
        """What keeps it from storing jobs durably, in one sentence, as far as it shows without a write; else None."""

    def close(self) -> None:
        """Release the file; later calls raise StoreError."""


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One outbox row.

    Args:
        tries, note: how many there were since it was ordered, and what the last one saw.
        round: how often it was ordered again.
        due_at: Unix seconds of the next try; None when it was delivered or given up.
    """

    job_id: str
    url: str
    tries: int
    note: str
    round: int = 0
    due_at: float | None = None
    is_delivered: bool = False


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What one try saw: an HTTP status, or none and in the note why."""

    is_delivered: bool
    note: str
    http_status: int | None = None
    duration_s: float = 0.0

    def as_try(self, job_id: str, now: float, next_in_s: float | None) -> WebhookTry:
        """The log's entry for a try that ended just now."""
        verdict: Verdict = "delivered" if self.is_delivered else "given up" if next_in_s is None else "again"
        return WebhookTry(job_id, now - self.duration_s, self.duration_s, self.http_status, self.note, verdict)


@dataclass(frozen=True, slots=True)
class WebhookTry:
    """One line of the delivery log. `began_at` is in Unix seconds of the store's clock."""

    job_id: str
    began_at: float
    duration_s: float
    http_status: int | None
    note: str
    verdict: Verdict
