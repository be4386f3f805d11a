"""The durable table of jobs: what every store guarantees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.jobs.store.deliveries import Redelivery, WebhookAnswer, WebhookDelivery, WebhookTry
from server.jobs.store.job import CancelOutcome, Job, JobState, JobStatus, NewJob, Outcome
from server.jobs.store.nodes import NodeReport, SeenNode

if TYPE_CHECKING:
    from server.jobs.store.accounts import Ended, Pause, PauseKind, Search, Usage, UsageQuestion
    from server.jobs.store.budgets import Budget

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


@dataclass(frozen=True, slots=True)
class Backlog:
    """Args: oldest_s: how long the oldest waiting job waits; 0 without one. webhooks: that are still owed.
    webhook_late_s: how long the one that is due longest has been due."""

    oldest_s: float
    webhooks: int
    webhook_late_s: float


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What another node has changed. Args: status: of the job from now on. cancel_requested: of a running one."""

    job_id: str
    status: JobStatus
    cancel_requested: bool


StoreListener = Callable[[Sequence[Elsewhere]], None]


class Channel(Protocol):
    """Short texts from a node to all of a store's, in the order of each, kept nowhere; what is said while the
    connection is broken is lost."""

    def tell(self, texts: Sequence[str]) -> None:
        """To every node, this one as well; each less than 8,000 bytes of ASCII. Raises: StoreError."""

    def hear(self, take: Callable[[str], None], on_return: Callable[[], None]) -> None:
        """Call `take` with every text, `on_return` when the connection was made anew, on a thread of the store's."""


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
        max_bytes: int | None = None,
    ) -> Job:
        """Store a job durably; returns after the commit.

        A submit that repeats an earlier one (`Repeat`: the same name within NAMED_KEPT_S; without one the same
        digest within UNDELIVERED_KEPT_S, if the answer to the first could not be delivered) stores nothing and
        returns that one's row, in any state.

        Raises: RepeatMismatchError; QueueFullError when `max_queued` jobs or more wait already, or `max_own` of its
            tenant; InputsFullError when its input is large, and with it those of its tenant that wait would be more
            than all leave free of `max_bytes`; BudgetSpentError when a budget of its key has no room; StoreError.
        """

    def note_answer(self, job_id: str, is_delivered: bool) -> None:
        """The answer to its submit was written to the connection, or could not be. Returns at once; survives kill -9
        soon after. A node that dies before counts as one that could not answer."""

    def get(self, job_id: str) -> Job | None:
        """The row, or None."""

    def known(self, job_id: str, tenant: str | None = None) -> JobState | None:
        """`state` as far as it is in memory: of what has not ended, or only just. Never waits for the database."""

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

    def listen(self, listener: StoreListener) -> None:
        """Call it, on a thread of the store's, with what other nodes that share the store have changed, in order."""

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

        With `died`, counts a death for each that is not `not_started` (ids that the worker had not begun, or was done
        with), a lone death if it was the only such one; a job that was running at MAX_DEATHS deaths or
        MAX_LONE_DEATHS lone ones, or that has no attempt left, fails as `runner_disconnected` (503). Those that had
        not begun, and all without `died`, have their attempt back; but where none had begun it counts, up to ten, since
        one of them may be the cause. A job whose cancel was requested is cancelled either way.
        Returns: the rows after the change."""

    def release_one(self, job_id: str, owner: str, epoch: int) -> bool:
        """Give up one claim after an internal fault of the worker: no death is counted, but the attempt is used.

        The job fails as `runner_disconnected` if that was its last, and is cancelled if that was requested.
        Returns: False, and changes nothing, if this claim is not the current one."""

    def expire(self, living: frozenset[str] = frozenset()) -> list[Job]:
        """End waiting jobs past their start deadline (504 `request_timeout`), and release those with expired leases:
        their node is gone, which as in `recover` counts neither an attempt nor a death. Returns the changed rows.

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
        """At start-up: cancel unfinished synchronous runs, whose connections are gone. Returns how many.

        A store that several nodes share leaves this to `expire`."""

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

    def find(self, search: Search, limit: int, with_payloads: bool = False) -> list[Job]:
        """Up to so many jobs, the newest first; without payloads with an empty input, and of pictures their sizes."""

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

    def note_node(self, report: NodeReport) -> frozenset[str]:
        """Note what a node and its workers do, in the place of what it said before; once a second, so cheap, and it
        need not survive a power cut. Forgets nodes that have been silent for KEPT_S.

        Returns: of the report's names those that have been told to rest."""

    def forget_node(self, name: str) -> None:
        """The node has stopped, or is known to be gone; what was ordered of it goes, too."""

    def nodes(self) -> list[SeenNode]:
        """All nodes that serve from this store, by name, with those that have fallen silent."""

    def rest(self, name: str, is_wanted: bool) -> bool:
        """Tell a node, or one of its workers, to take no more jobs, or to take them again; lasts as long as this life
        of the node. It hears of it with its next report. Returns: False, and changes nothing, if nobody has that
        name."""

    @property
    def channel(self) -> Channel | None:
        """Where its nodes talk to each other; None if there is never more than one."""

    @property
    def problem(self) -> str | None:
        """What keeps it from storing jobs durably, in one sentence, as far as it shows without a write; else None."""

    def close(self) -> None:
        """Release the file; later calls raise StoreError."""
