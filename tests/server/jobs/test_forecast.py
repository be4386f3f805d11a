"""How fast the line moves, and whom that makes late."""

from __future__ import annotations

import math
import random
from collections import deque
from typing import Any

import pytest

from server.jobs.forecast import ENOUGH, MAX_RETRY_S, STALE_S, WINDOW, Forecast, LateError
from server.jobs.store.job import NewJob
from tests.server.stores import new_job

PARAMS: dict[str, Any] = {"model": "m", "width": 1024, "height": 1024, "num_inference_steps": 10, "num_images": 1}


class Line:
    """A forecast with a clock by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.forecast = Forecast(lambda: self.now)

    def start(self, count: int, every_s: float = 2.0, waiting: int = 5, tenant: str = "ann") -> None:
        for _ in range(count):
            self.forecast.note_start(waiting, tenant)
            self.now += every_s
        self.now -= every_s

    def most(self, new: NewJob, waiting: int = 5) -> int | None:
        return self.forecast.most_waiting(new, waiting)


@pytest.fixture
def line() -> Line:
    return Line()


def test_nobody_is_late_before_the_pace_is_known(line: Line) -> None:
    line.start(ENOUGH - 1)
    assert line.forecast.pace_s() is None
    assert line.most(new_job(start_within_s=0.2)) is None


def test_the_pace_is_that_of_starts_while_others_wait(line: Line) -> None:
    line.start(ENOUGH)
    assert line.forecast.pace_s() == pytest.approx(2.0)
    line.start(1, waiting=0)
    assert line.forecast.pace_s() is None


def test_a_line_that_stands_still_becomes_slower(line: Line) -> None:
    line.start(ENOUGH)
    line.now += 100.0
    assert (line.forecast.pace_s() or 0) > 10.0


def test_a_slow_hour_is_forgotten_as_soon_as_the_line_is_fast(line: Line) -> None:
    line.start(WINDOW, every_s=100.0)
    assert line.forecast.pace_s() == pytest.approx(100.0)
    line.now += 1.0
    line.start(ENOUGH, every_s=1.0)
    assert line.forecast.pace_s() == pytest.approx(1.0)


def test_what_waits_beside_free_workers_is_no_line(line: Line) -> None:
    """Requests of a model that is paused, say, which wait for ever; meanwhile hours pass."""
    line.start(WINDOW)
    line.forecast.note_room()
    line.now += 3_600.0
    assert line.most(new_job(start_within_s=1.0), waiting=3) is None


def test_with_nobody_in_the_line_anything_is_taken(line: Line) -> None:
    line.start(WINDOW)
    assert line.most(new_job(start_within_s=1.0), waiting=0) is None


def test_starts_of_long_ago_say_nothing(line: Line) -> None:
    line.start(WINDOW)
    line.now += STALE_S
    assert line.most(new_job(start_within_s=1.0)) is None


@pytest.mark.parametrize(("limit_s", "most"), [(0.5, 1), (1.9, 1), (2.0, 2), (9.0, 5), (None, None)])
def test_as_many_may_wait_as_start_within_the_limit(line: Line, limit_s: float | None, most: int | None) -> None:
    line.start(ENOUGH)
    assert line.most(new_job(start_within_s=limit_s)) == most


def test_a_deadline_leaves_time_for_the_work_itself(line: Line) -> None:
    line.start(ENOUGH)
    new = new_job(params=PARAMS, output={"done_within_s": 9.0})
    assert line.most(new) == 5
    line.forecast.note_end(PARAMS | {"num_inference_steps": 5}, 3.0)
    assert line.most(new) == 2  # 6 s of work leave 3
    assert line.most(new_job(params=PARAMS, output={"done_within_s": 1.0})) == 1
    assert line.most(new_job(params=PARAMS | {"model": "other"}, output={"done_within_s": 9.0})) == 5


def test_who_is_late_is_told_when_one_of_its_own_will_have_started(line: Line) -> None:
    for _ in range(ENOUGH):
        for tenant in ("ann", "bob", "ann", "eve"):
            line.start(1, tenant=tenant)
            line.now += 2.0
    line.now -= 2.0
    told = {
        who: line.forecast.late(new_job(start_within_s=3.0, tenant=who)).retry_after_s for who in ("ann", "bob", "ida")
    }
    assert told == {"ann": 4, "bob": 8, "ida": 2}, "whoever had none is told the least"
    assert "3 s" in str(line.forecast.late(new_job(start_within_s=3.0)))
    assert LateError(1.0, -5.0).retry_after_s == 1
    assert LateError(1.0, 1e9).retry_after_s == MAX_RETRY_S


class Shop:
    """Some nodes over one queue, each with some servers, in an arithmetic world; first come, first served.

    Those that a forecast would refuse are kept in the line nevertheless, to see whether it was right.
    """

    def __init__(self, nodes: int, servers: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.forecasts = [Forecast(lambda: self.now) for _ in range(nodes)]
        self.free_at = [0.0] * (nodes * servers)
        self.waiting: deque[tuple[float, bool]] = deque()
        self.ends: list[tuple[float, bool]] = []
        """(how long it waited, whether it was foreseen to be late)"""

    def run(self, arrivals: int, every_s: float, limit_s: float) -> None:
        for _ in range(arrivals):
            self.advance(self.now + self.random.expovariate(1 / every_s))
            most = self.random.choice(self.forecasts).most_waiting(new_job(start_within_s=limit_s), len(self.waiting))
            self.waiting.append((self.now, most is not None and len(self.waiting) >= most))
        self.advance(math.inf)

    def advance(self, until: float) -> None:
        while self.waiting and (begins := max(min(self.free_at), self.waiting[0][0])) <= until:
            self.now = begins
            arrived, is_late = self.waiting.popleft()
            self.free_at[self.free_at.index(min(self.free_at))] = begins + self.random.uniform(0.5, 1.5)
            self.ends.append((begins - arrived, is_late))
            for forecast in self.forecasts:
                forecast.note_start(len(self.waiting), "ann")
        self.now = self.now if until == math.inf else until


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("load", [0.7, 0.95, 1.3])
def test_who_is_refused_would_have_been_late_however_many_nodes_share_the_line(nodes: int, load: float) -> None:
    shop = Shop(nodes, servers=2, seed=nodes)
    shop.run(2_000, 1.0 / (load * 2 * nodes), limit_s=5.0)
    late = sum(waited > 5.0 for waited, _ in shop.ends)
    refused = [waited for waited, is_foreseen in shop.ends if is_foreseen]
    assert sum(waited < 4.0 for waited in refused) <= 0.02 * len(refused), "a fifth early is nearly right"
    if load > 1:
        assert len(refused) > 0.9 * late > 900
