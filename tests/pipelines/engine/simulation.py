"""A device that exists only as arithmetic: arrivals, cancels and steps driven through the real scheduler.

    python -m tests.pipelines.engine.simulation --requests 1000000

Every invariant the scheduler promises is checked at every step; a breach raises AssertionError.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.engine.cost import CostModel
from pipelines.engine.request import Request, Row
from pipelines.engine.scheduler import Scheduler, SchedulerConfig
from pipelines.protocol.params import GenerationParams

TOKENS = (288, 800, 1056, 3104, 4128)
STEPS = (1, 1, 2, 2, 4, 4, 8)


def true_ms(rows: tuple[Row, ...]) -> float:
    """What the pretended device takes: 2 ms, 10 ms a thousand tokens, attention inside each picture."""
    return 2.0 + sum(row.request.tokens * (0.01 + 1.5e-6 * row.request.tokens) for row in rows)


@dataclass
class Report:
    """What came of a simulation."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    expired: int = 0
    steps: int = 0
    row_steps: int = 0
    longest_overtaken_ms: float = 0.0
    busy_ms: float = 0.0
    latency_ms: float = 0.0
    seconds: float = 0.0


class Simulation:
    """One run: a stream of arrivals at a share of the device's capacity, until everything has ended."""

    def __init__(self, requests: int, seed: int, load: float, config: SchedulerConfig | None = None) -> None:
        self.rng = random.Random(seed)
        self.config = config or SchedulerConfig(max_resident=128)
        self.scheduler = Scheduler(self.config, CostModel())
        self.report = Report(requests=requests)
        self.now_ms = 0.0
        self._live: dict[Request, float] = {}
        self._arrivals = self._stream(requests, load)
        self._next = next(self._arrivals, None)
        self._seen_plan: tuple[Row, ...] | None = None
        self._dues: dict[Request, float] = {}

    def run(self) -> Report:
        began = time.perf_counter()
        while self._next or self._live:
            self._take_arrivals()
            self._expire()
            plan = self.scheduler.plan(self.now_ms / 1e3)
            if not plan:
                assert not self._live, "work is left but nothing runs"
                if self._next:
                    self.now_ms = max(self.now_ms, self._next[0])
                continue
            if plan is not self._seen_plan:
                self._check(plan)
                self._seen_plan = plan
            self._step(plan)
        report = self.report
        report.seconds = time.perf_counter() - began
        assert report.finished + report.cancelled + report.expired == report.requests, "a request was lost"
        assert self.scheduler.requests == 0
        assert self.scheduler.running == 0
        return report

    def _stream(self, count: int, load: float) -> Iterator[tuple[float, Request]]:
        """Arrivals as (time, request); mean work alone over mean gap is `load`."""
        rng = self.rng
        shapes = {
            (tokens, steps, images): GenerationParams("m", "", 64, 64, steps, 3.5, 0, num_images=images)
            for tokens in TOKENS
            for steps in set(STEPS)
            for images in (1, 2)
        }
        mean_step = sum(2.0 + t * (0.01 + 1.5e-6 * t) for t in TOKENS) / len(TOKENS)
        mean_gap = mean_step * sum(STEPS) / len(STEPS) * 1.1 / load
        now = 0.0
        for index in range(count):
            now += rng.expovariate(1 / mean_gap)
            tokens, steps, images = rng.choice(TOKENS), rng.choice(STEPS), 2 if rng.random() < 0.1 else 1
            yield (
                now,
                Request(
                    job_id="",
                    epoch=index,
                    params=shapes[tokens, steps, images],
                    group="m",
                    tokens=tokens,
                    arrival=now / 1e3,
                    priority=int(rng.random() < 0.1),
                    start_by=now / 1e3 + 2.0 if rng.random() < 0.02 else None,
                ),
            )

    def _take_arrivals(self) -> None:
        while self._next and self._next[0] <= self.now_ms:
            arrived, request = self._next
            self.scheduler.add(request)
            self._live[request] = arrived
            self._next = next(self._arrivals, None)
            if self.rng.random() < 0.01:
                self._cancel(request)

    def _cancel(self, newest: Request) -> None:
        """Somebody cancels: the newest, or the oldest there is."""
        victim = newest if self.rng.random() < 0.5 else next(iter(self._live))
        self.scheduler.remove(victim)
        del self._live[victim]
        self.report.cancelled += 1

    def _expire(self) -> None:
        for request in self.scheduler.expired(self.now_ms / 1e3):
            assert not request.is_admitted
            assert request.start_by is not None
            assert request.start_by <= self.now_ms / 1e3
            del self._live[request]
            self.report.expired += 1

    def _check(self, plan: tuple[Row, ...]) -> None:
        """What must hold of every plan."""
        config, cost = self.config, self.scheduler.cost
        assert len(set(map(id, plan))) == len(plan) <= config.max_rows
        assert all(row.steps_left > 0 and row.request in self._live for row in plan)
        if len(plan) > 1 and plan is not self._seen_plan:
            # The model may have learned since the plan was made; a little over is a budget kept.
            assert cost.predict(row.request.tokens for row in plan) <= config.budget_ms * 1.5
        self._check_fairness(plan)
        self._check_dues(plan)

    def _check_dues(self, plan: tuple[Row, ...]) -> None:
        """What a request was promised is put off, but never beyond patience, and never comes closer again."""
        for request in dict.fromkeys(row.request for row in plan):
            allowed = request.due_ms - 1e3 * request.arrival
            late_ms = self.config.low_priority_ms if request.priority else 0.0
            assert self._dues.get(request, 0.0) <= allowed <= self.config.patience * request.work_ms + late_ms + 1e-6
            self._dues[request] = allowed

    def _check_fairness(self, plan: tuple[Row, ...]) -> None:
        """Whoever waits is overtaken only by requests that arrived within its bound."""
        oldest = next(iter(self._live))
        if oldest.is_admitted:
            return
        bound = self.config.patience * oldest.work_ms + self.config.low_priority_ms
        first = plan[0].request
        overtaken = (first.arrival - oldest.arrival) * 1e3
        assert overtaken <= bound, f"a request was overtaken by one that came {overtaken:.0f} ms later"
        self.report.longest_overtaken_ms = max(self.report.longest_overtaken_ms, overtaken)

    def _step(self, plan: tuple[Row, ...]) -> None:
        scheduler, report = self.scheduler, self.report
        for row in plan:
            if not row.request.is_admitted:
                scheduler.admit(row.request)
        assert scheduler.running <= self.config.max_resident
        ms = true_ms(plan) * self.rng.uniform(0.95, 1.05)
        self.now_ms += ms
        through = scheduler.advance(plan)
        scheduler.observe([row.request.tokens for row in plan], ms)
        report.steps += 1
        report.row_steps += len(plan)
        report.busy_ms += ms
        for request in dict.fromkeys(row.request for row in through):
            if request.steps_left == 0:
                report.latency_ms += self.now_ms - self._live.pop(request)
                self._dues.pop(request, None)
                report.finished += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--load", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    report = Simulation(arguments.requests, arguments.seed, arguments.load).run()
    print(json.dumps(vars(report)))


if __name__ == "__main__":
    main()
