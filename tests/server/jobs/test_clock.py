"""The clock of leases and files."""

from __future__ import annotations

import time

import pytest

from server.jobs.store.clock import SteadyClock


def test_a_jump_of_the_wall_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    before = clock()
    assert abs(before - time.time()) < 1
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert 0 <= clock() - before < 60
