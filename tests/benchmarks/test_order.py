"""The pretended device: every request ends, in the time that arithmetic says, and limits are kept by more."""

from __future__ import annotations

import pytest

from benchmarks.engine.load import bursts, make_jobs, poisson
from benchmarks.order import alone_ms, figures, one_by_one, packed
from pipelines.engine.scheduler import SchedulerConfig

RATE = 0.35
"""Requests a second: about 80 % of what the device can do."""


def test_a_request_alone_takes_its_own_time() -> None:
    (job,) = make_jobs(1, 1, "m")
    packed([job], SchedulerConfig())
    assert abs(job.latency * 1e3 - alone_ms(job)) < 1e-6


def test_more_requests_keep_their_limit_than_in_the_order_of_arrival() -> None:
    base = make_jobs(400, 1, "m")
    served, first, stock = (poisson(base, RATE, 1) for _ in range(3))
    packed(served, SchedulerConfig())
    packed(first, SchedulerConfig(limit=0.0))
    one_by_one(stock)
    shares = [figures(jobs)["within_3x"] for jobs in (served, first, stock)]
    assert shares[0] > shares[1] + 0.2
    assert all(job.done > job.arrival for jobs in (served, first, stock) for job in jobs)


@pytest.mark.parametrize(("in_bursts", "rate"), [(True, RATE), (False, 1.4 * RATE)])
def test_nobody_loses_more_by_the_order_than_patience_times_its_own_work(in_bursts: bool, rate: float) -> None:
    base = make_jobs(400, 3, "m")
    served, first, stock = (bursts(base, rate) if in_bursts else poisson(base, rate, 3) for _ in range(3))
    packed(served, SchedulerConfig())
    packed(first, SchedulerConfig(limit=0.0))
    one_by_one(stock)
    for mine, one, other in zip(served, first, stock, strict=True):
        lost_ms = 1e3 * (mine.latency - min(one.latency, other.latency))
        assert lost_ms <= SchedulerConfig().patience * alone_ms(mine) + SchedulerConfig().budget_ms


def test_the_recorded_bursts_come_at_the_rate_that_was_asked_for() -> None:
    jobs = bursts(make_jobs(480, 1, "m"), 2.0)
    assert abs(jobs[-1].arrival - 240) < 1
