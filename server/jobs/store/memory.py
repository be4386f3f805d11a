"""The in-memory double of the store, held to the same contract as the durable ones; for tests and trials."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from server.jobs.receivers import receiver_of
from server.jobs.store import budgets as budget_rules
from server.jobs.store import platform_outcomes, transitions
from server.jobs.store.accounts import (
    USAGE_KEPT_DAYS,
    Ended,
    Pause,
    PauseKind,
    Search,
    Usage,
    UsageQuestion,
    day_of,
    entries,
    searchable,
)
from server.jobs.store.base import NAMED_KEPT_S, PRIVATE_RETENTION_S, UNDELIVERED_KEPT_S, Backlog, StoreListener
from server.jobs.store.budgets import Budget, Pending
from server.jobs.store.clock import SteadyClock
from server.jobs.store.deliveries import (
    LOG_KEPT_S,
    LOG_ROWS,
    LONGEST_PAUSE_S,
    TRIES_KEPT,
    Redelivery,
    WebhookAnswer,
    WebhookDelivery,
    WebhookTry,
)
from server.jobs.store.errors import InputsFullError, QueueFullError, RepeatMismatchError, StoreError
from server.jobs.store.job import CancelOutcome, Job, JobState, JobStatus, NewJob, Outcome
from server.jobs.store.kept_input import size_of_input
from server.jobs.store.nodes import NodeBook, NodeReport, SeenNode
from server.jobs.store.queue_index import QueueIndex, backlog_of, has_room, state_of
from server.jobs.store.rows import brief


@dataclass
class _Delivery:
    due_at: float | None
    tries: int = 0
    note: str = ""
    round: int = 0
    is_delivered: bool = False


class MemoryStore:
    """`Store` without durability: one lock around a dict of rows. Args: clock: Unix seconds."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or SteadyClock()
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._webhooks: dict[str, _Delivery] = {}
        self._log: dict[str, list[WebhookTry]] = {}
        self._repeats: dict[str, NewJob] = {}
        self._undelivered: set[str] = set()
        self._pauses: dict[tuple[PauseKind, str], Pause] = {}
        self._usage: list[tuple[str, Usage]] = []
        self._line = QueueIndex()
        self._pending = Pending()
        self._nodes = NodeBook(self._clock)
        self._last_seq = 0
        self._is_closed = False

    def enqueue(
        self,
        new: NewJob,
        max_queued: int | None = None,
        max_own: int | None = None,
        budgets: Sequence[Budget] = (),
        max_bytes: int | None = None,
    ) -> Job:
        with self._open():
            if (earlier := self._earlier(new)) is not None:
                return earlier
            if new.id in self._jobs:
                raise StoreError(f"request id {new.id} is taken")
            if new.outcome is None and max_queued is not None and self._line.length >= max_queued:
                raise QueueFullError(f"{max_queued} requests wait already")
            if new.outcome is None and max_own is not None and self._line.length_of(new.tenant) >= max_own:
                raise QueueFullError(f"{max_own} requests of this key wait already")
            if new.outcome is None and not has_room(
                self._line.large_inputs(new.tenant), size_of_input(new.input), max_bytes
            ):
                raise InputsFullError
            if new.outcome is None:
                budget_rules.check(budgets, new, lambda day: self.units_since(new.key_id, day), self._clock())
            self._last_seq += 1
            if new.repeat is not None:
                self._repeats[new.id] = new
            return self._save(None, transitions.created(new, self._last_seq, self._clock()))

    def note_answer(self, job_id: str, is_delivered: bool) -> None:
        with self._open():
            new = self._repeats.get(job_id)
            if new is None or new.repeat is None or new.repeat.name is not None:
                return
            if is_delivered:
                del self._repeats[job_id]
            else:
                self._undelivered.add(job_id)

    def get(self, job_id: str) -> Job | None:
        with self._open():
            return self._jobs.get(job_id)

    def known(self, job_id: str, tenant: str | None = None) -> JobState | None:
        with self._open():
            return self._line.state(job_id, tenant)

    def state(self, job_id: str, tenant: str | None = None) -> JobState | None:
        with self._open():
            state = self._line.state(job_id, tenant) or state_of(self._jobs.get(job_id))
            return state if state is not None and state.is_for(tenant) else None

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
        with self._open():
            now = self._clock()
            waiting = sorted(self._in_state(JobStatus.QUEUED), key=lambda job: (job.queue_rank, job.seq))
            ready = [
                job
                for job in waiting
                if (models is None or job.model in models)
                and (quarantined is None or quarantined == (job.deaths > 0))
                and (buckets is None or job.hint_bucket is None or job.hint_bucket in buckets)
                and not _is_past(job.start_deadline, now)
                and not {("model", job.model), ("key", job.key_id)} & self._pauses.keys()
            ]
            taken = self._line.turns(now, at_most).take(
                limit, lambda tenant: [job for job in ready if job.tenant == tenant]
            )
            return [self._save(job, transitions.claimed(job, owner, now, lease_s)) for job in taken]

    def waiting_for_others(self, models: frozenset[str]) -> dict[str, str]:
        with self._open():
            waiting = self._in_state(JobStatus.QUEUED)
            return {job.id: job.model for job in waiting if job.model is not None and job.model not in models}

    def quarantined(self) -> int:
        with self._open():
            return self._line.quarantined

    def now(self) -> float:
        return self._clock()

    def listen(self, listener: StoreListener) -> None:
        """Nobody else changes it."""

    def note_begun(self, job_id: str, owner: str, epoch: int) -> None:
        with self._open():
            job = self._jobs.get(job_id)
            if job is not None and transitions.is_current(job, owner, epoch):
                self._save(job, transitions.begun(job))

    def renew(self, owner: str, lease_s: float) -> list[Job]:
        with self._open():
            lease_until = self._clock() + lease_s
            held = [self._save(job, replace(job, lease_until=lease_until)) for job in self._held_by(owner)]
            return [job for job in held if job.cancel_requested]

    def finish(self, job_id: str, owner: str, epoch: int, outcome: Outcome) -> bool:
        with self._open():
            job = self._jobs.get(job_id)
            if job is None or not transitions.is_current(job, owner, epoch):
                return False
            self._save(job, transitions.ended(job, outcome, self._clock()))
            return True

    def release(
        self,
        owner: str,
        died: bool,
        not_started: frozenset[str] = frozenset(),
        keep: frozenset[str] = frozenset(),
    ) -> list[Job]:
        with self._open():
            held = [job for job in self._held_by(owner) if job.id not in keep]
            return self._save_all(transitions.released(held, died, not_started, self._clock()))

    def release_one(self, job_id: str, owner: str, epoch: int) -> bool:
        with self._open():
            job = self._jobs.get(job_id)
            if job is None or not transitions.is_current(job, owner, epoch):
                return False
            self._save(job, transitions.attempt_failed(job, self._clock()))
            return True

    def expire(self, living: frozenset[str] = frozenset()) -> list[Job]:
        with self._open():
            now = self._clock()
            late = [job for job in self._in_state(JobStatus.QUEUED) if _is_past(job.start_deadline, now)]
            changed = self._save_all(
                (job, transitions.ended(job, platform_outcomes.start_timeout(), now)) for job in late
            )
            expired = [job for job in self._in_state(JobStatus.RUNNING) if _is_past(job.lease_until, now)]
            lost = [job for job in expired if job.owner not in living]
            return changed + self._save_all((job, transitions.node_died(job, now)) for job in lost)

    def request_cancel(self, job_id: str) -> tuple[CancelOutcome, Job | None]:
        with self._open():
            job = self._jobs.get(job_id)
            if job is None:
                return CancelOutcome.NOT_FOUND, None
            if job.status.is_finished:
                return CancelOutcome.ALREADY_FINISHED, job
            flagged = replace(job, cancel_requested=True)
            if job.status is JobStatus.RUNNING:
                return CancelOutcome.REQUESTED, self._save(job, flagged)
            ended = transitions.ended(flagged, platform_outcomes.cancelled(), self._clock())
            return CancelOutcome.CANCELLED, self._save(job, ended)

    def counts(self) -> dict[JobStatus, int]:
        with self._open():
            return self._line.counts()

    def backlog(self) -> Backlog:
        with self._open():
            owed = [delivery.due_at for delivery in self._webhooks.values() if delivery.due_at is not None]
            return backlog_of(self._line.oldest_at, len(owed), min(owed, default=None), self._clock())

    def recover(self) -> list[Job]:
        with self._open():
            now = self._clock()
            self._undelivered = set(self._repeats)
            for delivery in self._webhooks.values():
                if delivery.due_at is not None and (not delivery.tries or delivery.due_at > now + LONGEST_PAUSE_S):
                    delivery.due_at = min(delivery.due_at, now)
            running = self._in_state(JobStatus.RUNNING)
            return self._save_all((job, transitions.node_died(job, now)) for job in running)

    def end_ephemeral(self) -> int:
        with self._open():
            now = self._clock()
            gone = [job for job in self._jobs.values() if job.is_ephemeral and not job.status.is_finished]
            return len(
                self._save_all((job, transitions.ended(job, platform_outcomes.disconnected(), now)) for job in gone)
            )

    def sweep(self, retention_s: float) -> list[str]:
        with self._open():
            now = self._clock()
            old = [job for job in self._jobs.values() if _is_past(_kept_until(job, retention_s), now)]
            for job in old:
                del self._jobs[job.id]
                self._webhooks.pop(job.id, None)
                self._line.change(job, None)
            self._trim_log(now)
            kept = day_of(now) - USAGE_KEPT_DAYS
            self._usage = [(name, usage) for name, usage in self._usage if usage.day is not None and usage.day >= kept]
            return [job.id for job in old]

    def delete(self, job_id: str) -> Job | None:
        with self._open():
            job = self._jobs.get(job_id)
            if job is None or not job.status.is_finished:
                return None
            del self._jobs[job_id]
            self._webhooks.pop(job_id, None)
            self._repeats.pop(job_id, None)
            self._line.change(job, None)
            return job

    def unfinished_inputs(self, containing: str) -> list[str]:
        with self._open():
            texts = [json.dumps(job.input) for job in self._jobs.values() if not job.status.is_finished]
            return [text for text in texts if containing in text]

    def newest_at(self) -> float | None:
        with self._open():
            return max(self._jobs.values(), key=lambda job: job.seq).created_at if self._jobs else None

    def pause(self, kind: PauseKind, name: str) -> None:
        with self._open():
            self._pauses.setdefault((kind, name), Pause(kind, name, self._clock()))

    def resume(self, kind: PauseKind, name: str) -> bool:
        with self._open():
            return self._pauses.pop((kind, name), None) is not None

    def pauses(self) -> list[Pause]:
        with self._open():
            return [self._pauses[which] for which in sorted(self._pauses)]

    def prioritise(self, job_id: str) -> Job | None:
        with self._open():
            job = self._jobs.get(job_id)
            if job is None or job.status is not JobStatus.QUEUED:
                return None
            own = [other for other in self._in_state(JobStatus.QUEUED) if other.tenant == job.tenant]
            first = min(own, key=lambda other: (other.queue_rank, other.seq))
            return self._save(job, transitions.moved_before(job, first))

    def find(self, search: Search, limit: int, with_payloads: bool = False) -> list[Job]:
        with self._open():
            newest = sorted(self._jobs.values(), key=lambda job: -job.seq)
            found = [job for job in newest if _is_found(job, search)][:limit]
        return found if with_payloads else [_brief(job) for job in found]

    def ended(self, search: Search, limit: int) -> list[Ended]:
        return [
            Ended(
                job.endpoint,
                job.created_at,
                job.outcome.http_status,
                None if job.started_at is None else job.started_at - job.created_at,
                None if job.started_at is None else job.finished_at - job.started_at,
            )
            for job in self.find(search, limit)
            if job.outcome is not None and job.finished_at is not None
        ]

    def usage(self, question: UsageQuestion, limit: int, offset: int = 0) -> list[Usage]:
        with self._open():
            sums: dict[tuple[Any, ...], list[Any]] = {}
            for name, usage in self._usage:
                if name == question.name and _is_asked_for(usage, question):
                    day = usage.day if question.by_day else None
                    key = (day, usage.tenant, usage.endpoint, usage.key_id, usage.value)
                    counts = (usage.requests, usage.failures, usage.units, usage.images, usage.seconds)
                    sums[key] = [old + new for old, new in zip(sums.get(key, [0] * 5), counts, strict=True)]
            return [Usage(*key, *counts) for key, counts in sorted(sums.items())][offset : offset + limit]

    def drawn(self, new: NewJob) -> Job | None:
        with self._open():
            found = [
                job
                for job in self._in_state(JobStatus.COMPLETED)
                if job.store_io and (job.picture_key, job.tenant) == (new.picture_key, new.tenant)
            ]
            return max(found, key=lambda job: job.seq, default=None)

    def units_since(self, key_id: str, first_day: int) -> Mapping[str, int]:
        with self._open():
            units = self._pending.of(key_id)
            for name, usage in self._usage:
                if not name and usage.key_id == key_id and usage.day is not None and usage.day >= first_day:
                    units[usage.endpoint] += usage.units
            return units

    def due_webhooks(self, limit: int, per_receiver: int | None = None) -> list[WebhookDelivery]:
        with self._open():
            now = self._clock()
            due = sorted(
                (delivery.due_at, job_id)
                for job_id, delivery in self._webhooks.items()
                if delivery.due_at is not None and delivery.due_at <= now
            )
            deliveries = [self._delivery(job_id) for _, job_id in due]
            return (deliveries if per_receiver is None else _in_turn(deliveries, per_receiver))[:limit]

    def settle_webhook(self, delivery: WebhookDelivery, answer: WebhookAnswer, next_in_s: float | None) -> None:
        with self._open():
            now = self._clock()
            entry = answer.as_try(delivery.job_id, now, next_in_s)
            self._log[delivery.job_id] = [*self._log.get(delivery.job_id, []), entry][-TRIES_KEPT:]
            row = self._webhooks.get(delivery.job_id)
            if row is not None and row.round == delivery.round:
                row.tries += 1
                row.note, row.is_delivered = answer.note, answer.is_delivered
                row.due_at = now + next_in_s if entry.verdict == "again" and next_in_s is not None else None

    def webhooks(self, limit: int) -> list[WebhookDelivery]:
        with self._open():
            newest = sorted(self._webhooks, key=lambda job_id: -self._jobs[job_id].seq)
            return [self._delivery(job_id) for job_id in newest[:limit]]

    def webhook(self, job_id: str) -> WebhookDelivery | None:
        with self._open():
            return self._delivery(job_id) if job_id in self._webhooks else None

    def webhook_tries(self, job_id: str) -> list[WebhookTry]:
        with self._open():
            return list(self._log.get(job_id, []))

    def redeliver_webhook(self, job_id: str) -> Redelivery:
        with self._open():
            job = self._jobs.get(job_id)
            if job is None:
                return Redelivery.FORGOTTEN if job_id in self._log else Redelivery.NOT_FOUND
            if job.webhook_url is None:
                return Redelivery.NO_WEBHOOK
            if not job.status.is_finished:
                return Redelivery.NOT_FINISHED
            old = self._webhooks[job_id]
            self._webhooks[job_id] = _Delivery(due_at=self._clock(), note=old.note, round=old.round + 1)
            return Redelivery.ORDERED

    def note_node(self, report: NodeReport) -> frozenset[str]:
        return self._nodes.note(report)

    def forget_node(self, name: str) -> None:
        self._nodes.forget(name)

    def nodes(self) -> list[SeenNode]:
        return self._nodes.all()

    def rest(self, name: str, is_wanted: bool) -> bool:
        return self._nodes.rest(name, is_wanted)

    @property
    def channel(self) -> None:
        return None

    @property
    def problem(self) -> str | None:
        return None

    def close(self) -> None:
        self._is_closed = True

    def _earlier(self, new: NewJob) -> Job | None:
        """The job that this submit repeats. Raises: RepeatMismatchError."""
        repeat, now = new.repeat, self._clock()
        if repeat is None:
            return None
        for job_id, old in reversed(self._repeats.items()):
            job = self._jobs.get(job_id)
            if old.repeat is None or job is None or (old.tenant, old.endpoint) != (new.tenant, new.endpoint):
                continue
            if old.repeat.name != repeat.name or (repeat.name is None and job_id not in self._undelivered):
                continue
            age_s = now - job.created_at
            if repeat.name is None and old.repeat.digest == repeat.digest and age_s < UNDELIVERED_KEPT_S:
                return job
            if repeat.name is not None and age_s < NAMED_KEPT_S:
                if old.repeat.digest != repeat.digest:
                    raise RepeatMismatchError
                return job
        return None

    def _open(self) -> threading.RLock:
        if self._is_closed:
            raise StoreError("the store is closed")
        return self._lock

    def _in_state(self, status: JobStatus) -> list[Job]:
        return [job for job in self._jobs.values() if job.status is status]

    def _held_by(self, owner: str) -> list[Job]:
        return [job for job in self._in_state(JobStatus.RUNNING) if job.owner == owner]

    def _save(self, before: Job | None, after: Job) -> Job:
        self._jobs[after.id] = after
        self._line.change(before, after)
        self._pending.change(before, after)
        if after.status.is_finished:
            self._usage += entries(after)
        if after.status.is_finished and after.webhook_url is not None:
            self._webhooks[after.id] = _Delivery(due_at=self._clock())
        return after

    def _save_all(self, pairs: Iterable[tuple[Job, Job]]) -> list[Job]:
        return [self._save(before, after) for before, after in list(pairs)]

    def _delivery(self, job_id: str) -> WebhookDelivery:
        row, url = self._webhooks[job_id], self._jobs[job_id].webhook_url
        assert url is not None
        return WebhookDelivery(job_id, url, row.tries, row.note, row.round, row.due_at, row.is_delivered)

    def _trim_log(self, now: float) -> None:
        entries = [entry for log in self._log.values() for entry in log if entry.began_at > now - LOG_KEPT_S]
        self._log = {}
        for entry in sorted(entries, key=lambda entry: entry.began_at)[-LOG_ROWS:]:
            self._log.setdefault(entry.job_id, []).append(entry)


def _in_turn(deliveries: Iterable[WebhookDelivery], per_receiver: int) -> list[WebhookDelivery]:
    """The first of every receiver, then the second of every receiver, and so on."""
    seen: Counter[str] = Counter()
    placed: list[tuple[int, WebhookDelivery]] = []
    for delivery in deliveries:
        seen[receiver_of(delivery.url)] += 1
        placed.append((seen[receiver_of(delivery.url)], delivery))
    return [delivery for place, delivery in sorted(placed, key=lambda entry: entry[0]) if place <= per_receiver]


def _is_found(job: Job, search: Search) -> bool:
    return (
        search.tenant in (None, job.tenant)
        and all(job.tags.get(name) == value for name, value in search.tags)
        and (not search.statuses or job.status in search.statuses)
        and (not search.endpoints or job.endpoint in search.endpoints)
        and (not search.keys or job.key_id in search.keys)
        and (not search.models or job.model in search.models)
        and (not search.ids or job.id in search.ids)
        and _has_words(job, search.text)
        and search.since <= job.created_at < search.until
        and (search.before is None or job.seq < search.before)
    )


def _brief(job: Job) -> Job:
    """Without its payloads."""
    return replace(job, input={}, outcome=None if job.outcome is None else brief(job.outcome))


def _has_words(job: Job, text: str) -> bool:
    words = re.findall(r"\w+", searchable(job).lower())
    return all(any(word.startswith(begin) for word in words) for begin in text.lower().split())


def _is_asked_for(usage: Usage, question: UsageQuestion) -> bool:
    assert usage.day is not None
    return (
        question.tenant in (None, usage.tenant)
        and question.days[0] <= usage.day <= question.days[1]
        and question.value in (None, usage.value)
        and (not question.endpoints or usage.endpoint in question.endpoints)
        and (not question.keys or usage.key_id in question.keys)
    )


def _is_past(moment: float | None, now: float) -> bool:
    return moment is not None and moment <= now


def _kept_until(job: Job, retention_s: float) -> float | None:
    if job.finished_at is None:
        return None
    return job.finished_at + (retention_s if job.store_io else min(retention_s, PRIVATE_RETENTION_S))
