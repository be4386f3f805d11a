"""What a tenant may take: an even pace after a first burst, and bytes."""

from __future__ import annotations

import pytest

from server.jobs.limits import Allowance, Limits, RateLimitedError, StorageFullError


def test_a_minutes_submits_may_come_at_once_and_then_one_at_a_time() -> None:
    now = [100.0]
    allowance = Allowance(lambda tenant: Limits(per_minute=3), clock=lambda: now[0])
    for _ in range(3):
        allowance.count_submit("ann")
    with pytest.raises(RateLimitedError) as caught:
        allowance.count_submit("ann")
    assert caught.value.retry_after_s == 20
    assert "3 requests a minute" in str(caught.value)
    allowance.count_submit("bob")
    now[0] += 20
    allowance.count_submit("ann")
    with pytest.raises(RateLimitedError):
        allowance.count_submit("ann")
    now[0] += 3600
    for _ in range(3):
        allowance.count_submit("ann")
    with pytest.raises(RateLimitedError):
        allowance.count_submit("ann")


def test_without_limits_nobody_is_counted() -> None:
    allowance = Allowance()
    for _ in range(10_000):
        allowance.count_submit("ann")
    assert allowance.running("ann") is allowance.waiting("ann") is allowance.room("ann") is None


def test_who_keeps_all_it_may_submits_no_more() -> None:
    stored = {"ann": 99}
    allowance = Allowance(lambda tenant: Limits(storage_bytes=100), lambda tenant: stored[tenant])
    allowance.count_submit("ann")
    assert allowance.room("ann") == 1
    stored["ann"] = 130
    assert allowance.room("ann") == 0
    with pytest.raises(StorageFullError, match=r"as many bytes as it may \(100\)"):
        allowance.count_submit("ann")


def test_asking_for_the_rate_counts_nothing() -> None:
    now = [100.0]
    allowance = Allowance(lambda tenant: Limits(per_minute=2), clock=lambda: now[0])
    for _ in range(2):
        allowance.check_rate("ann")
        allowance.check_rate("ann")
        allowance.count_submit("ann")
    with pytest.raises(RateLimitedError):
        allowance.check_rate("ann")
    allowance.check_rate("bob")
    now[0] += 30
    allowance.check_rate("ann")


def test_the_tighter_of_two_limits_counts_and_none_is_no_limit() -> None:
    assert Limits(running=2, waiting=9).within(Limits(running=3, per_minute=7)) == Limits(2, 9, 7)
    assert Limits(running=3).within(Limits(running=2)) == Limits(running=2)
