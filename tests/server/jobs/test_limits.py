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
    with pytest.raises(StorageFullError, match="100"):
        allowance.count_submit("ann")
