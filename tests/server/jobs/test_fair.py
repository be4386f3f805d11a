"""The order of turns, and what is remembered of whom."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from server.jobs.store import transitions
from server.jobs.store.fair import TenantLines, work
from server.jobs.store.job import Job
from tests.server.stores import DONE, LEASE_S, OPEN_STORE, Clock, new_job

NOW = 1000.0
SOON = NOW + 60
"""The rank of a low-priority job that is still young."""


def job(rank: float = 0.0, seq: int = 0, tenant: str = "a") -> Job:
    return replace(transitions.created(new_job(tenant=tenant), seq, rank), created_at=rank)


def lines_of(**ranks: list[float]) -> TenantLines:
    lines = TenantLines()
    for tenant, theirs in ranks.items():
        for seq, rank in enumerate(theirs):
            lines.join(tenant, (rank, seq))
    return lines


def taken(lines: TenantLines, limit: int, **ranks: list[float]) -> list[str]:
    """Whose jobs one claim takes."""
    of = {tenant: [job(rank, seq, tenant) for seq, rank in enumerate(theirs)] for tenant, theirs in ranks.items()}
    return [job.tenant for job in lines.turns(NOW).take(limit, of.__getitem__)]


def test_what_says_nothing_of_its_size_is_one_step_of_a_megapixel() -> None:
    assert work(job()) == 1.0


@pytest.mark.parametrize(("own", "expected"), [([0.0, 0.0, SOON], ["a", "a"]), ([0.0, SOON], ["a", "b"])])
def test_a_young_low_priority_job_yields_when_its_turn_comes(own: list[float], expected: list[str]) -> None:
    """And not a job sooner: `b` has had more than both of `a` ask for."""
    ranks = {"a": own, "b": [0.0]}
    lines = lines_of(**ranks)
    lines.start("b", 10.0)
    assert taken(lines, 2, **ranks) == expected


def test_who_has_nothing_here_and_is_owed_nothing_is_forgotten() -> None:
    lines = TenantLines()
    for tenant in "abc":
        lines.start(tenant, 1.0)
    lines.start("c", 1.0)
    for tenant in "abcc":
        lines.stop(tenant)
    assert len(lines) == 1, "c has had more than a newcomer would begin with"


@pytest.mark.parametrize("kind", list(OPEN_STORE))
def test_a_claim_of_the_last_waiting_job_is_paid_once(kind: str, tmp_path: Path) -> None:
    """Its tenant was forgotten between waiting and running, and began again where the others had got to by then."""
    with closing(OPEN_STORE[kind](tmp_path, Clock())) as store:
        store.enqueue(new_job(tenant="a"))
        store.claim("w", 1, LEASE_S)
        store.enqueue(new_job(tenant="a"))
        store.enqueue(new_job(tenant="b", priority=1))
        first_of_b = store.claim("w", 2, LEASE_S)[-1]
        store.finish(first_of_b.id, "w", first_of_b.epoch, DONE)
        store.enqueue(new_job(tenant="a"))
        store.enqueue(new_job(tenant="b"))
        assert [job.tenant for job in store.claim("w", 1, LEASE_S)] == ["b"], "a has had two, b one"
