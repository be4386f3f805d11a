"""Random histories of calls against every store and an independent model: whatever the order, nothing is lost,
nothing ends twice, and every row and every queue position is what the model says."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule, run_state_machine_as_test

from server.jobs.store.job import CancelOutcome, Outcome
from tests.server.stores import DONE, LEASE_S, OPEN_STORE, Clock, new_job, place

TENANTS = st.sampled_from(["", "ann", "bob"])
OWNERS = st.sampled_from(["w1", "w2", "w3"])
ENDED = ("completed", "failed", "cancelled")


@dataclass
class Expected:
    """One job as the model knows it."""

    rank: tuple[float, int]
    deadline: float | None
    max_attempts: int
    attempt: int = 0
    has_begun: bool = False
    state: str = "queued"
    owner: str | None = None
    epoch: int = 0
    lease_until: float = 0.0
    deaths: int = 0
    lone: int = 0
    tenant: str = ""
    cancel: bool = False
    ended_as: list[Outcome] = field(default_factory=list)

    def end(self, state: str) -> None:
        self.state, self.owner = state, None

    def give_up(self, must_end: bool = False, limit: int | None = None) -> None:
        if self.cancel:
            self.end("cancelled")
        elif must_end or self.attempt >= (limit or self.max_attempts):
            self.end("failed")
        else:
            self.end("queued")
        self.has_begun = False

    def hand_back(self) -> None:
        self.attempt -= 1
        self.give_up(limit=self.max_attempts + 1)

    def lose_node(self) -> None:
        if self.has_begun and not self.cancel:
            self.end("failed")
        else:
            self.hand_back()


class TwoNodes:
    """Two nodes of one shared store: every call goes to the other of them, once it has heard of everything."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.stores = [OPEN_STORE["postgres"](folder, clock) for _ in range(2)]

    def __getattr__(self, name: str) -> Any:
        self.stores.reverse()
        store: Any = self.stores[0]
        store._writer.run(lambda tx: None, is_promise=False)
        return getattr(store, name)

    def close(self) -> None:
        for store in self.stores:
            store.close()


OPEN: dict[str, Callable[[Path, Clock], Any]] = {**OPEN_STORE, "two nodes": TwoNodes}
EMBEDDED = ("memory", "sqlite")


class StoreMachine(RuleBasedStateMachine):
    """Every rule does one call to the store and the same to the model."""

    kind: str
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.store = OPEN[self.kind](self.folder, self.clock)
        self.model: dict[str, Expected] = {}
        self.had = dict.fromkeys(["", "ann", "bob"], 0.0)
        self.reached = 0.0

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def running(self, owner: str | None = None) -> dict[str, Expected]:
        return {i: e for i, e in self.model.items() if e.state == "running" and owner in (None, e.owner)}

    def line(self, tenant: str | None = None) -> list[str]:
        waiting = [i for i, e in self.model.items() if e.state == "queued" and tenant in (None, e.tenant)]
        return sorted(waiting, key=lambda i: self.model[i].rank)

    def may_be_claimed(self, job_id: str, quarantined: bool | None) -> bool:
        expected = self.model[job_id]
        is_wanted = quarantined is None or quarantined == (expected.deaths > 0)
        return is_wanted and (expected.deadline is None or expected.deadline > self.clock.now)

    @invariant()
    def nobody_saves_up(self) -> None:
        """Who has nothing waiting begins, when it has again, where the others are."""
        for tenant in self.had:
            if not self.line(tenant):
                self.had[tenant] = max(self.had[tenant], self.reached)

    def in_turn(self, limit: int, quarantined: bool | None, at_most: int | None) -> list[str]:
        """What a claim must take: always the next of who has had least, a young low-priority job last."""
        had = dict(self.had)
        running = {tenant: sum(e.tenant == tenant for e in self.running().values()) for tenant in had}
        lines = {tenant: self.line(tenant) for tenant in had}
        ready = {tenant: [i for i in line if self.may_be_claimed(i, quarantined)] for tenant, line in lines.items()}
        taken: list[str] = []

        def turn(tenant: str) -> tuple[bool, float, tuple[float, int]]:
            number = sum(self.model[i].tenant == tenant for i in taken)
            rank = self.model[lines[tenant][min(number, len(lines[tenant]) - 1)]].rank
            return rank[0] > self.clock.now, had[tenant], rank

        while len(taken) < limit:
            free = [t for t in had if ready[t] and (at_most is None or running[t] < at_most)]
            if not free:
                break
            tenant = min(free, key=turn)
            taken.append(ready[tenant].pop(0))
            had[tenant] += 1
            running[tenant] += 1
        return taken

    @rule(
        target=jobs,
        tenant=TENANTS,
        low=st.booleans(),
        deadline=st.none() | st.integers(1, 40),
        attempts=st.integers(1, 4),
    )
    def enqueue(self, tenant: str, low: bool, deadline: int | None, attempts: int) -> str:
        new = new_job(tenant=tenant, priority=int(low), start_within_s=deadline, max_attempts=attempts)
        job = self.store.enqueue(new)
        now = self.clock.now
        expires_at = None if deadline is None else now + deadline
        self.model[job.id] = Expected((now + 300.0 * low, job.seq), expires_at, attempts, tenant=tenant)
        return job.id

    @rule(
        target=claims,
        owner=OWNERS,
        limit=st.integers(1, 3),
        quarantined=st.sampled_from([None, True, False]),
        at_most=st.none() | st.integers(1, 2),
    )
    def claim(self, owner: str, limit: int, quarantined: bool | None, at_most: int | None) -> object:
        now = self.clock.now
        wanted = self.in_turn(limit, quarantined, at_most)
        taken = self.store.claim(owner, limit, LEASE_S, quarantined=quarantined, at_most=lambda tenant: at_most)
        assert [job.id for job in taken] == wanted
        for job in taken:
            self.reached = max(self.reached, self.had[job.tenant])
            self.had[job.tenant] += 1
            expected = self.model[job.id]
            expected.state, expected.owner, expected.lease_until = "running", owner, now + LEASE_S
            expected.epoch += 1
            expected.attempt += 1
        return multiple(*((job.id, owner, job.epoch) for job in taken))

    @rule(claim=claims)
    def finish(self, claim: tuple[str, str, int]) -> None:
        """Any claim of the past may try, so most of these are zombies."""
        job_id, owner, epoch = claim
        expected = self.model[job_id]
        is_current = (expected.state, expected.owner, expected.epoch) == ("running", owner, epoch)
        assert self.store.finish(job_id, owner, epoch, DONE) is is_current
        if is_current:
            expected.end("completed")

    @rule(claim=claims)
    def release_one(self, claim: tuple[str, str, int]) -> None:
        job_id, owner, epoch = claim
        expected = self.model[job_id]
        is_current = (expected.state, expected.owner, expected.epoch) == ("running", owner, epoch)
        assert self.store.release_one(job_id, owner, epoch) is is_current
        if is_current:
            expected.give_up()

    @rule(claim=claims)
    def note_begun(self, claim: tuple[str, str, int]) -> None:
        job_id, owner, epoch = claim
        expected = self.model[job_id]
        self.store.note_begun(job_id, owner, epoch)
        if (expected.state, expected.owner, expected.epoch) == ("running", owner, epoch):
            expected.has_begun = True

    def die(self, held: dict[str, Expected], begun: set[str]) -> None:
        for job_id, expected in held.items():
            if job_id in begun:
                expected.deaths += 1
                expected.lone += len(begun) == 1
                expected.give_up(must_end=expected.deaths >= 3 or expected.lone >= 2)
            elif begun:
                expected.hand_back()
            else:
                expected.give_up(limit=max(expected.max_attempts, 10))

    @rule(owner=OWNERS, data=st.data())
    def worker_dies(self, owner: str, data: st.DataObject) -> None:
        held = self.running(owner)
        begun = set(data.draw(st.lists(st.sampled_from(sorted(held)), unique=True))) if held else set()
        changed = self.store.release(owner, died=True, not_started=frozenset(set(held) - begun))
        assert {job.id for job in changed} == set(held)
        self.die(held, begun)

    @rule(owner=OWNERS)
    def worker_drains(self, owner: str) -> None:
        for expected in self.running(owner).values():
            expected.hand_back()
        self.store.release(owner, died=False)

    @rule(owner=OWNERS)
    def renew(self, owner: str) -> None:
        held = self.running(owner)
        flagged = {job.id for job in self.store.renew(owner, LEASE_S)}
        assert flagged == {job_id for job_id, expected in held.items() if expected.cancel}
        for expected in held.values():
            expected.lease_until = self.clock.now + LEASE_S

    @rule(seconds=st.sampled_from([0.5, 5.0, 20.0, 31.0, 299.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(living=st.frozensets(OWNERS))
    def expire(self, living: frozenset[str]) -> None:
        self.store.expire(living)
        now = self.clock.now
        for job_id in self.line():
            expected = self.model[job_id]
            if expected.deadline is not None and expected.deadline <= now:
                expected.end("failed")
        lost = {i: e for i, e in self.running().items() if e.lease_until <= now and e.owner not in living}
        for expected in lost.values():
            expected.lose_node()

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        expected = self.model[job_id]
        outcome, _ = self.store.request_cancel(job_id)
        if expected.state in ENDED:
            assert outcome is CancelOutcome.ALREADY_FINISHED
        elif expected.state == "running":
            assert outcome is CancelOutcome.REQUESTED
            expected.cancel = True
        else:
            assert outcome is CancelOutcome.CANCELLED
            expected.end("cancelled")

    @rule()
    def node_restarts(self) -> None:
        if self.kind != "memory":
            self.store.close()
            self.had, self.reached = dict.fromkeys(self.had, 0.0), 0.0
            self.store = OPEN[self.kind](self.folder, self.clock)
        self.store.recover()
        for expected in self.running().values() if self.kind in EMBEDDED else ():
            expected.lose_node()

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        for job_id, expected in self.model.items():
            job = self.store.get(job_id)
            assert job is not None, "an acknowledged job is never lost"
            assert (job.status, job.owner, job.epoch) == (expected.state, expected.owner, expected.epoch)
            assert (job.deaths, job.lone_deaths) == (expected.deaths, expected.lone)
            if expected.state in ("queued", "running"):
                assert (job.attempt, job.has_begun) == (expected.attempt, expected.has_begun)
            assert (job.outcome is not None) is (expected.state in ENDED)
            state = self.store.state(job_id)
            assert state is not None
            assert (state.endpoint, state.status, state.outcome) == (job.endpoint, job.status, job.outcome)
            if job.outcome is not None:
                expected.ended_as.append(job.outcome)
                assert expected.ended_as[0] == job.outcome, "an end never changes"

    @invariant()
    def positions_are_as_the_model_says(self) -> None:
        lines = {tenant: self.line(tenant) for tenant in self.had}
        for job_id, expected in self.model.items():
            own = lines[expected.tenant]
            rounds = own.index(job_id) if job_id in own else None
            before = None if rounds is None else sum(min(rounds, len(line)) for line in lines.values())
            assert place(self.store, job_id) == before

    @invariant()
    def nobody_sees_what_is_anothers(self) -> None:
        for job_id, expected in self.model.items():
            for tenant in self.had:
                can_see = self.store.state(job_id, tenant) is not None
                assert can_see is (expected.tenant in ("", tenant))

    @invariant()
    def counts_are_as_the_model_says(self) -> None:
        states = [expected.state for expected in self.model.values()]
        assert self.store.quarantined() == sum(self.model[job_id].deaths > 0 for job_id in self.line())
        assert self.store.counts() == {status: states.count(status) for status in self.store.counts()}


@pytest.mark.parametrize("kind", sorted(OPEN))
def test_any_history_keeps_the_promises(kind: str) -> None:
    machine = type("Machine", (StoreMachine,), {"kind": kind})
    config = settings(
        max_examples=60 if kind in EMBEDDED else 6,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=config)
