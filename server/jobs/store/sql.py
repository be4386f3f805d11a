"""What every store in SQL does: the contract in transactions, by the rules of `transitions`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from server.jobs.store import budgets as budget_rules
from server.jobs.store import ledger, outbox, platform_outcomes, repeats, transitions
from server.jobs.store.accounts import Ended, Pause, PauseKind, Search, Usage, UsageQuestion
from server.jobs.store.base import PRIVATE_RETENTION_S, Backlog
from server.jobs.store.batches import Batches, Change, Transaction
from server.jobs.store.budgets import Budget, Pending, expected_units
from server.jobs.store.deliveries import Redelivery, WebhookAnswer, WebhookDelivery, WebhookTry
from server.jobs.store.dialect import Dialect
from server.jobs.store.errors import InputsFullError, QueueFullError, StoreError
from server.jobs.store.job import SHARED, CancelOutcome, Job, JobState, JobStatus, NewJob, Outcome
from server.jobs.store.kept_input import size_of_input
from server.jobs.store.nodes import SeenNode
from server.jobs.store.queue_index import LARGE_INPUT, QueueIndex, backlog_of, has_room, state_of
from server.jobs.store.rows import (
    CHANGING_COLUMNS,
    CONSTANT_COLUMNS,
    DERIVED_COLUMNS,
    READ_COLUMNS,
    STATE_COLUMNS,
    from_row,
    to_row,
)

T = TypeVar("T")

SWEPT_AT_ONCE = 200
"""Rows that one transaction of a sweep deletes."""

UNFINISHED = ("WHERE status = 'queued'", "WHERE status = 'running'")
"""One by one, as the indexes are: asked for together, SQLite would read the whole table."""
_SELECT = f"SELECT {', '.join(READ_COLUMNS)} FROM job"
_SWEEP = (
    "DELETE FROM job WHERE seq IN (SELECT seq FROM job WHERE finished_at <= ? UNION ALL "
    "SELECT seq FROM job WHERE finished_at <= ? AND store_io = 0 LIMIT ?) RETURNING id, status"
)
"""Arguments: until when everything goes, until when what is private, and how many at most."""

Read = Callable[[str, tuple[Any, ...]], Iterable[tuple[Any, ...]]]
"""All rows of one question. Raises: StoreError."""


class SqlStore(ABC):
    """`Store` but for opening and closing it. See `server.jobs.store.base.Store` for what every method promises.

    Whoever derives from it opens `_writer` and the two ways to read, and fills `_line` and `_pending`.
    """

    _dialect: ClassVar[Dialect]
    _claims_are_promises: ClassVar[bool]
    """Whether a claim is to outlive a power cut, as where its worker may."""
    _derived_columns: ClassVar[tuple[str, ...]] = DERIVED_COLUMNS
    _writer: Batches[Any]
    _read: Read
    _search: Read
    """Beside `_read`: a search may take long, and what every poll asks must not wait for it."""

    def __init__(self) -> None:
        self._line = QueueIndex()
        self._pending = Pending()
        self._damaged: list[int] = []
        self._insert_columns = (*CONSTANT_COLUMNS, *STATE_COLUMNS, *self._derived_columns)
        places = ", ".join("?" * len(self._insert_columns))
        self._insert_row = f"INSERT INTO job ({', '.join(self._insert_columns)}) VALUES ({places}) RETURNING seq"
        self._changed_columns = (*STATE_COLUMNS, *(name for name in self._derived_columns if name in CHANGING_COLUMNS))
        changes = ", ".join(f"{name} = ?" for name in self._changed_columns)
        self._update_row = f"UPDATE job SET {changes} WHERE seq = ?"
        brief = {"input": "'{}'", "outcome": self._dialect.brief}
        self._select_brief = f"SELECT {', '.join(brief.get(name, name) for name in READ_COLUMNS)} FROM job"

    @abstractmethod
    def now(self) -> float:
        """Unix seconds of the store's clock."""

    @abstractmethod
    def nodes(self) -> list[SeenNode]:
        """All nodes that serve from this store."""

    @abstractmethod
    def close(self) -> None:
        """Release the database; later calls raise StoreError."""

    def enqueue(
        self,
        new: NewJob,
        max_queued: int | None = None,
        max_own: int | None = None,
        budgets: Sequence[Budget] = (),
        max_bytes: int | None = None,
    ) -> Job:
        return self._writer.run(lambda tx: self._insert(tx, new, max_queued, max_own, budgets, max_bytes))

    def note_answer(self, job_id: str, is_delivered: bool) -> None:
        self._writer.post(lambda tx: repeats.note_answer(tx.execute, job_id, is_delivered))

    def get(self, job_id: str) -> Job | None:
        return self._get(job_id, None)

    def known(self, job_id: str, tenant: str | None = None) -> JobState | None:
        return self._line.state(job_id, tenant)

    def state(self, job_id: str, tenant: str | None = None) -> JobState | None:
        return self.known(job_id, tenant) or state_of(self._get(job_id, tenant))

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
        wanted = "" if models is None else f"AND {_any_of('model', models)}"
        wanted += {None: "", True: " AND deaths > 0", False: " AND deaths = 0"}[quarantined]
        if buckets is not None:
            wanted += f" AND (hint_bucket IS NULL OR {_any_of('hint_bucket', buckets)})"

        def claim(tx: Transaction) -> list[Job]:
            now = tx.now
            turns = self._line.turns(now, at_most)
            for before, after in tx.changes:
                turns.note(before, after)
            line = (
                f"WHERE status = 'queued' AND tenant = ? AND (start_deadline IS NULL OR start_deadline > ?) {wanted} "
                "AND model NOT IN (SELECT name FROM pause WHERE kind = 'model') "
                "AND key_id NOT IN (SELECT name FROM pause WHERE kind = 'key') "
                "ORDER BY queue_rank, seq LIMIT ?"
            )
            values = (now, *sorted(models or ()), *sorted(buckets or ()), limit)
            taken = turns.take(limit, lambda tenant: jobs(tx, line, (tenant, *values)))
            return self._save_all(tx, ((job, transitions.claimed(job, owner, now, lease_s)) for job in taken))

        return self._writer.run(claim, self._claims_are_promises, must_know=True)

    def waiting_for_others(self, models: frozenset[str]) -> dict[str, str]:
        query = f"SELECT id, model FROM job WHERE status = 'queued' AND NOT {_any_of('model', models)}"
        return dict(self._read(query, tuple(models)))

    def quarantined(self) -> int:
        return self._line.quarantined

    def note_begun(self, job_id: str, owner: str, epoch: int) -> None:
        self._change_current(job_id, owner, epoch, lambda job, now: transitions.begun(job), self._claims_are_promises)

    def renew(self, owner: str, lease_s: float) -> list[Job]:
        def renew(tx: Transaction) -> list[Job]:
            tx.execute(
                "UPDATE job SET lease_until = ? WHERE status = 'running' AND owner = ?",
                (tx.now + lease_s, owner),
            )
            return jobs(tx, "WHERE status = 'running' AND owner = ? AND cancel_requested = 1", (owner,))

        return self._writer.run(renew, is_promise=False)

    def finish(self, job_id: str, owner: str, epoch: int, outcome: Outcome) -> bool:
        return self._change_current(job_id, owner, epoch, lambda job, now: transitions.ended(job, outcome, now))

    def release(
        self,
        owner: str,
        died: bool,
        not_started: frozenset[str] = frozenset(),
        keep: frozenset[str] = frozenset(),
    ) -> list[Job]:
        def release(tx: Transaction) -> list[Job]:
            running = jobs(tx, "WHERE status = 'running' AND owner = ?", (owner,))
            held = [job for job in running if job.id not in keep]
            return self._save_all(tx, transitions.released(held, died, not_started, tx.now))

        return self._writer.run(release, must_know=True)

    def release_one(self, job_id: str, owner: str, epoch: int) -> bool:
        return self._change_current(job_id, owner, epoch, transitions.attempt_failed)

    def expire(self, living: frozenset[str] = frozenset()) -> list[Job]:
        def expire(tx: Transaction) -> list[Job]:
            now = tx.now
            late = jobs(tx, "WHERE status = 'queued' AND start_deadline <= ?", (now,))
            changed = self._save_all(
                tx, ((job, transitions.ended(job, platform_outcomes.start_timeout(), now)) for job in late)
            )
            lost = self._lost(tx, living)
            return changed + self._save_all(tx, ((job, transitions.node_died(job, now)) for job in lost))

        # Asked every second and nearly always empty: look first, so that an idle node does not write.
        return self._writer.run(expire) if self._has_expired(living) else []

    def _lost(self, tx: Any, living: frozenset[str]) -> list[Job]:
        """What runs under leases that have ended."""
        expired = jobs(tx, "WHERE status = 'running' AND lease_until <= ?", (tx.now,))
        return [job for job in expired if job.owner not in living]

    def request_cancel(self, job_id: str) -> tuple[CancelOutcome, Job | None]:
        def cancel(tx: Transaction) -> tuple[CancelOutcome, Job | None]:
            job = _one_job(tx, job_id)
            if job is None:
                return CancelOutcome.NOT_FOUND, None
            if job.status.is_finished:
                return CancelOutcome.ALREADY_FINISHED, job
            flagged = replace(job, cancel_requested=True)
            if job.status is JobStatus.RUNNING:
                return CancelOutcome.REQUESTED, self._save(tx, job, flagged)
            ended = transitions.ended(flagged, platform_outcomes.cancelled(), tx.now)
            return CancelOutcome.CANCELLED, self._save(tx, job, ended)

        return self._writer.run(cancel)

    def counts(self) -> dict[JobStatus, int]:
        return self._line.counts()

    def backlog(self) -> Backlog:
        webhooks, first_due = outbox.owed(self._read)
        return backlog_of(self._line.oldest_at, webhooks, first_due, self.now())

    def recover(self) -> list[Job]:
        def recover(tx: Transaction) -> list[Job]:
            now = tx.now
            outbox.mend_times(tx.execute, now)
            repeats.doubt_all(tx.execute)
            for seq in self._damaged:
                self._end_damaged(tx, seq)
            running = jobs(tx, "WHERE status = 'running'")
            return self._save_all(tx, ((job, transitions.node_died(job, now)) for job in running))

        return self._writer.run(recover)

    def end_ephemeral(self) -> int:
        def end(tx: Transaction) -> int:
            now = tx.now
            gone = [job for where in UNFINISHED for job in jobs(tx, f"{where} AND is_ephemeral = 1")]
            return len(
                self._save_all(
                    tx, ((job, transitions.ended(job, platform_outcomes.disconnected(), now)) for job in gone)
                )
            )

        return self._writer.run(end)

    def sweep(self, retention_s: float) -> list[str]:
        # In small transactions: one for all would hold up submits for seconds, and every row would be read for it.
        swept: list[str] = []
        # Durable, as files are deleted next: no row may come back that names one.
        while rows := self._writer.run(partial(self._sweep_some, retention_s)):
            for job_id, status in rows:
                self._line.forget(job_id, JobStatus(status))
                swept.append(job_id)
        for sweep in (outbox.sweep, repeats.sweep, ledger.sweep):
            while self._writer.run(lambda tx: sweep(tx.execute, tx.now, SWEPT_AT_ONCE), is_promise=False):  # noqa: B023
                pass
        return swept

    def _sweep_some(self, retention_s: float, tx: Transaction) -> list[tuple[str, str]]:
        """Delete a few that have ended long enough ago; (id, status) of each."""
        now = tx.now
        private_s = min(retention_s, PRIVATE_RETENTION_S)
        rows = tx.execute(_SWEEP, (now - retention_s, now - private_s, SWEPT_AT_ONCE))
        return self._tell_gone(tx, [(job_id, status) for job_id, status in rows])

    def delete(self, job_id: str) -> Job | None:
        def take(tx: Transaction) -> Job | None:
            job = _one_job(tx, job_id)
            if job is None or not job.status.is_finished:
                return None
            tx.execute("DELETE FROM job WHERE seq = ?", (job.seq,))
            self._tell_gone(tx, [(job.id, job.status)])
            return job

        job = self._writer.run(take)
        if job is not None:
            self._line.forget(job.id, job.status)
        return job

    def unfinished_inputs(self, containing: str) -> list[str]:
        queries = (f"SELECT input FROM job {where} AND {self._dialect.contains}" for where in UNFINISHED)
        return [text for query in queries for (text,) in self._read(query, (containing,))]

    def newest_at(self) -> float | None:
        for (created_at,) in self._read("SELECT created_at FROM job ORDER BY seq DESC LIMIT 1", ()):
            return float(created_at)
        return None

    def pause(self, kind: PauseKind, name: str) -> None:
        note = "INSERT INTO pause (kind, name, since) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        self._writer.run(lambda tx: tx.execute(note, (kind, name, tx.now)))

    def resume(self, kind: PauseKind, name: str) -> bool:
        take = "DELETE FROM pause WHERE kind = ? AND name = ? RETURNING 1"
        return bool(self._writer.run(lambda tx: tx.execute(take, (kind, name))))

    def pauses(self) -> list[Pause]:
        return [Pause(*row) for row in self._read("SELECT kind, name, since FROM pause ORDER BY kind, name", ())]

    def prioritise(self, job_id: str) -> Job | None:
        def move(tx: Transaction) -> Job | None:
            job = _one_job(tx, job_id)
            if job is None or job.status is not JobStatus.QUEUED:
                return None
            (first,) = jobs(
                tx, "WHERE status = 'queued' AND tenant = ? ORDER BY queue_rank, seq LIMIT 1", (job.tenant,)
            )
            return self._save(tx, job, transitions.moved_before(job, first))

        return self._writer.run(move)

    def find(self, search: Search, limit: int, with_payloads: bool = False) -> list[Job]:
        seqs, values = ledger.found(search, limit, self._dialect)
        select = _SELECT if with_payloads else self._select_brief
        return [from_row(row) for row in self._search(f"{select} WHERE seq IN ({seqs}) ORDER BY seq DESC", values)]

    def ended(self, search: Search, limit: int) -> list[Ended]:
        return ledger.ended(self._search, search, limit, self._dialect)

    def usage(self, question: UsageQuestion, limit: int, offset: int = 0) -> list[Usage]:
        return ledger.usage(self._search, question, limit, offset, self._dialect)

    def drawn(self, new: NewJob) -> Job | None:
        query = f"{_SELECT} WHERE picture_key = ? AND tenant = ? AND status = 'completed' AND store_io = 1"
        for row in self._read(f"{query} ORDER BY seq DESC LIMIT 1", (new.picture_key, new.tenant)):
            return from_row(row)
        return None

    def units_since(self, key_id: str, first_day: int) -> Mapping[str, int]:
        return self._pending.of(key_id) + Counter(ledger.units_of_key(self._read, key_id, first_day))

    def due_webhooks(self, limit: int, per_receiver: int | None = None) -> list[WebhookDelivery]:
        if per_receiver is None:
            return outbox.due(self._read, self.now(), limit)
        return outbox.due_in_turn(self._read, self.now(), limit, per_receiver, self._dialect)

    def settle_webhook(self, delivery: WebhookDelivery, answer: WebhookAnswer, next_in_s: float | None) -> None:
        self._writer.run(lambda tx: outbox.settle(tx.execute, delivery, answer, next_in_s, tx.now))

    def webhooks(self, limit: int) -> list[WebhookDelivery]:
        return outbox.newest(self._read, limit)

    def webhook(self, job_id: str) -> WebhookDelivery | None:
        return outbox.of_job(self._read, job_id)

    def webhook_tries(self, job_id: str) -> list[WebhookTry]:
        return outbox.tries(self._read, job_id)

    def redeliver_webhook(self, job_id: str) -> Redelivery:
        return self._writer.run(lambda tx: outbox.order_again(tx.execute, job_id, tx.now))

    # For what reads or fills it as a whole

    def transact(self, operation: Callable[[Transaction], T]) -> T:
        """Run one operation, however long it takes. Raises: what it raises; then nothing was changed."""
        return self._writer.run(operation, must_know=True)

    @property
    def dialect(self) -> Dialect:
        return self._dialect

    @property
    def derived_columns(self) -> tuple[str, ...]:
        """Columns of `job` that follow from the others."""
        return self._derived_columns

    def _get(self, job_id: str, tenant: str | None) -> Job | None:
        """By id and, if given, tenant: what is another's is not even read."""
        whose, names = ("", ()) if tenant is None else (" AND tenant IN (?, ?)", (SHARED, tenant))
        for row in self._read(f"{_SELECT} WHERE id = ?{whose}", (job_id, *names)):
            return from_row(row)
        return None

    def _insert(
        self,
        tx: Transaction,
        new: NewJob,
        max_queued: int | None,
        max_own: int | None,
        budgets: Sequence[Budget] = (),
        max_bytes: int | None = None,
    ) -> Job:
        now = tx.now
        if (earlier := repeats.earlier(tx.execute, new, now)) is not None:
            return jobs(tx, "WHERE seq = ?", (earlier,))[0]
        if new.outcome is None and max_queued is not None and self._waiting_in(tx) >= max_queued:
            raise QueueFullError(f"{max_queued} requests wait already")
        if new.outcome is None and max_own is not None and self._waiting_in(tx, new.tenant) >= max_own:
            raise QueueFullError(f"{max_own} requests of this key wait already")
        if new.outcome is None and max_bytes is not None and not self._has_room(tx, new, max_bytes):
            raise InputsFullError
        if new.outcome is None and budgets:
            budget_rules.check(budgets, new, partial(self._units_in, tx, new.key_id), now)
        if _one_job(tx, new.id) is not None:
            raise StoreError(f"request id {new.id} is taken")
        job = transitions.created(new, 0, now)
        ((seq,),) = tx.execute(self._insert_row, to_row(job, self._insert_columns))
        job = replace(job, seq=seq)
        repeats.note(tx.execute, job.seq, new, now)
        ledger.note(tx.execute, job, self._dialect)
        return self._record(tx, None, job)

    def _waiting_in(self, tx: Transaction, tenant: str | None = None) -> int:
        """Waiting jobs (of one tenant) as this transaction sees them: the line knows only what is committed."""
        known = self._line.length if tenant is None else self._line.length_of(tenant)
        return known + sum(_is_waiting(after, tenant) - _is_waiting(before, tenant) for before, after in tx.changes)

    def _has_room(self, tx: Transaction, new: NewJob, max_bytes: int) -> bool:
        """As this transaction sees it."""
        size = size_of_input(new.input)
        if size <= LARGE_INPUT:
            return True
        of_all, own = self._line.large_inputs(new.tenant)
        for before, after in tx.changes:
            for job, sign in ((before, -1), (after, 1)):
                if job is not None and job.status is JobStatus.QUEUED and (change := job.input_size) > LARGE_INPUT:
                    of_all += sign * change
                    own += sign * change * (job.tenant == new.tenant)
        return has_room((of_all, own), size, max_bytes)

    def _units_in(self, tx: Transaction, key_id: str, first_day: int) -> Mapping[str, int]:
        """`units_since` as this transaction sees it."""
        units = self._pending.of(key_id)
        units.update(ledger.units_of_key(tx.execute, key_id, first_day))
        for before, after in tx.changes:
            for job, sign in ((before, -1), (after, 1)):
                if job is not None and not job.status.is_finished and job.key_id == key_id:
                    units[job.endpoint] += sign * expected_units(job.params)
        return units

    def _tell_gone(self, tx: Any, rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """(id, status) of jobs that this transaction deletes; whoever else has an index of them must hear of it."""
        return rows

    def _change_current(
        self, job_id: str, owner: str, epoch: int, rule: Callable[[Job, float], Job], is_promise: bool = True
    ) -> bool:
        def change(tx: Transaction) -> bool:
            job = _one_job(tx, job_id)
            if job is None or not transitions.is_current(job, owner, epoch):
                return False
            self._save(tx, job, rule(job, tx.now))
            return True

        return self._writer.run(change, is_promise, must_know=True)

    def _save(self, tx: Transaction, before: Job, after: Job) -> Job:
        if after.input is not before.input:  # before its end is written, after which nothing may change
            tx.execute("UPDATE job SET input = ? WHERE seq = ?", (*to_row(after, ("input",)), after.seq))
        tx.execute(self._update_row, (*to_row(after, self._changed_columns), after.seq))
        return self._record(tx, before, after)

    def _save_all(self, tx: Transaction, pairs: Iterable[tuple[Job, Job]]) -> list[Job]:
        return [self._save(tx, before, after) for before, after in pairs]

    def _record(self, tx: Transaction, before: Job | None, after: Job) -> Job:
        """Note the change, and in the same transaction the webhook that an end owes."""
        tx.changes.append((before, after))
        if after.status.is_finished:
            ledger.count(tx.execute, after)
        if after.status.is_finished and after.webhook_url is not None:
            outbox.enqueue(tx.execute, after.seq, after.webhook_url, tx.now)
        return after

    def _note_changes(self, changes: list[Change]) -> None:
        for before, after in changes:
            self._line.change(before, after)
            self._pending.change(before, after)

    def _end_damaged(self, tx: Transaction, seq: int) -> None:
        """Fail a job whose row cannot be read: it would keep every claim from being made."""
        tx.execute(
            "UPDATE job SET input = '{}', output = '{}', params = '{}', status = 'queued', owner = NULL, "
            "lease_until = NULL, cancel_requested = 0 WHERE seq = ?",
            (seq,),
        )
        (job,) = jobs(tx, "WHERE seq = ?", (seq,))
        self._save(tx, job, transitions.ended(job, platform_outcomes.damaged(), tx.now))

    def _has_expired(self, living: frozenset[str]) -> bool:
        now = self.now()
        strangers = f"NOT {_any_of('owner', living)}"
        query = (
            "SELECT EXISTS (SELECT 1 FROM job WHERE status = 'queued' AND start_deadline <= ?) "
            f"OR EXISTS (SELECT 1 FROM job WHERE status = 'running' AND lease_until <= ? AND {strangers})"
        )
        return bool(next(iter(self._read(query, (now, now, *sorted(living)))))[0])


def jobs(tx: Transaction, where: str, values: tuple[Any, ...] = ()) -> list[Job]:
    """The rows that this finds."""
    return [from_row(row) for row in tx.execute(f"{_SELECT} {where}", values)]


def _any_of(column: str, values: Collection[object]) -> str:
    return f"({column} IN ({', '.join('?' * len(values))}))" if values else "FALSE"


def _one_job(tx: Transaction, job_id: str) -> Job | None:
    found = jobs(tx, "WHERE id = ?", (job_id,))
    return found[0] if found else None


def _is_waiting(job: Job | None, tenant: str | None) -> bool:
    return job is not None and job.status is JobStatus.QUEUED and tenant in (None, job.tenant)
