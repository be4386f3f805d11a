"""The order of turns, and what is remembered of whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.jobs.store import transitions
from server.jobs.store.fair import TenantLines, work
from server.jobs.store.job import Job
from tests.server.stores import new_job

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
