"""The scheduler as pure bookkeeping: order, budget, fairness, and a simulation that checks them all."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipelines.engine.cost import CostModel
from pipelines.engine.request import Request, Row
from pipelines.engine.scheduler import _LOOKAHEAD, _POSTPONED, _REPLAN_STEPS, Scheduler, SchedulerConfig
from pipelines.protocol.params import GenerationParams
from tests.pipelines.engine.simulation import Simulation


def make_request(
    steps: int = 4,
    tokens: int = 1000,
    arrival: float = 0.0,
    priority: int = 0,
    images: int = 1,
    group: str = "m",
    start_by: float | None = None,
    done_by: float | None = None,
) -> Request:
    params = GenerationParams("m", "", 64, 64, steps, 3.5, 0, num_images=images)
    return Request("job", 1, params, group, tokens, arrival, priority, start_by, done_by)


def make_scheduler(**config: float) -> Scheduler:
    """Fixed 2 ms, 24 ms for a picture of 1,000 tokens."""
    return Scheduler(SchedulerConfig(**config), CostModel((2.0, 20.0, 4.0)))  # type: ignore[arg-type]


def run_step(scheduler: Scheduler, now: float = 0.0) -> tuple[Row, ...]:
    plan = scheduler.plan(now)
    for row in plan:
        scheduler.admit(row.request)
    scheduler.advance(plan)
    return plan


def requests_of(plan: tuple[Row, ...]) -> list[Request]:
    return [row.request for row in plan]


def test_an_idle_scheduler_starts_a_request_at_once() -> None:
    scheduler = make_scheduler()
    assert scheduler.plan(0.0) == ()
    request = make_request()
    scheduler.add(request)
    assert requests_of(scheduler.plan(0.0)) == [request]


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    scheduler = make_scheduler(budget_ms=30)
    long, short = make_request(steps=50), make_request(steps=4, arrival=1.0)
    scheduler.add(long)
    run_step(scheduler)
    scheduler.add(short)
    for _ in range(4):
        assert requests_of(run_step(scheduler)) == [short]
    assert requests_of(run_step(scheduler)) == [long]


def test_equals_run_in_the_order_in_which_they_came() -> None:
    scheduler = make_scheduler(budget_ms=30)
    requests = [make_request(start_by=5.0) for _ in range(3)]
    for request in requests:
        scheduler.add(request)
    assert requests_of(scheduler.plan(0.0)) == requests[:1]
    assert scheduler.expired(5.0) == requests


@pytest.mark.parametrize(("skipped", "is_found"), [(_LOOKAHEAD - 1, True), (_LOOKAHEAD, False)])
def test_what_fits_is_looked_for_behind_so_many_that_do_not(skipped: int, is_found: bool) -> None:
    scheduler = make_scheduler(budget_ms=30)
    scheduler.add(make_request(steps=1, tokens=100))
    for _ in range(skipped):
        scheduler.add(make_request(steps=1, tokens=4000, arrival=1.0))
    fits = make_request(steps=1, tokens=100, arrival=1000.0)
    for request in (fits, *(make_request(steps=1, tokens=100, arrival=2000.0) for _ in range(9))):
        scheduler.add(request)
    assert (fits in requests_of(scheduler.plan(0.0))) is is_found


def test_it_learns_from_what_steps_took() -> None:
    scheduler = make_scheduler()
    before = scheduler.cost.predict([1000])
    for _ in range(50):
        scheduler.observe([1000], 10 * before)
    assert scheduler.cost.predict([1000]) > 2 * before


def test_a_long_request_is_overtaken_only_while_it_can_spare_the_time() -> None:
    scheduler = make_scheduler(budget_ms=30, limit=3.0)
    long, short = make_request(steps=50), make_request(steps=4, arrival=3.5)
    for late in (make_request(steps=4, arrival=3.8), short, long):
        scheduler.add(late)
    assert requests_of(run_step(scheduler, 2.5)) == [short]  # due at 3.8 s, the long one at 3.9


def test_who_cannot_be_on_time_lets_those_pass_who_can() -> None:
    scheduler = make_scheduler(budget_ms=30, limit=3.0)
    lost, kept = make_request(steps=50), make_request(steps=26, arrival=2.0)
    scheduler.add(lost)
    scheduler.add(kept)
    assert requests_of(scheduler.plan(2.5)) == [lost]  # due at 3.9 s and 1.3 s of work; the other at 4.03
    scheduler.add(make_request(steps=50, arrival=2.7))
    assert requests_of(scheduler.plan(2.7)) == [kept]


def test_nobody_waits_for_requests_that_came_much_later() -> None:
    scheduler = make_scheduler(budget_ms=30, limit=3.0, patience=40.0)
    long = make_request(steps=50)
    scheduler.add(long)
    scheduler.add(make_request(steps=4, arrival=52.0))
    assert requests_of(scheduler.plan(52.0)) == [long]


def test_a_start_deadline_is_a_limit_too() -> None:
    scheduler = make_scheduler(budget_ms=30)
    short, pressed = make_request(steps=4), make_request(steps=50, start_by=-1.1)
    scheduler.add(short)
    scheduler.add(pressed)
    assert requests_of(scheduler.plan(-2.0)) == [pressed]


@pytest.mark.parametrize(("done_by", "is_first"), [(0.2, True), (5.0, False)])
def test_a_callers_own_deadline_is_a_limit_where_it_is_tighter(done_by: float, is_first: bool) -> None:
    scheduler = make_scheduler(budget_ms=30)
    short, pressed = make_request(steps=4), make_request(steps=5, done_by=done_by)
    scheduler.add(short)  # due at 0.31 s, the other at 0.39 by its work
    scheduler.add(pressed)
    assert requests_of(scheduler.plan(0.0)) == [pressed if is_first else short]


def test_a_deadline_that_has_passed_fails_nothing() -> None:
    scheduler = make_scheduler(budget_ms=30)
    late = make_request(done_by=1.0)
    scheduler.add(late)
    assert scheduler.expired(2.0) == []
    assert requests_of(scheduler.plan(2.0)) == [late]


def test_without_a_limit_the_first_come_is_the_first_served() -> None:
    scheduler = make_scheduler(budget_ms=30, limit=0.0)
    long = make_request(steps=50)
    scheduler.add(long)
    scheduler.add(make_request(steps=1, arrival=0.1))
    assert requests_of(scheduler.plan(9.0)) == [long]


def test_low_priority_waits_for_normal_even_if_shorter() -> None:
    scheduler = make_scheduler(budget_ms=30)
    low, normal = make_request(steps=1, priority=1), make_request(steps=50, arrival=1.0)
    scheduler.add(low)
    scheduler.add(normal)
    assert requests_of(scheduler.plan(0.0)) == [normal]


def test_small_pictures_share_a_step_and_the_budget_holds() -> None:
    scheduler = make_scheduler(budget_ms=50)
    for _ in range(20):
        scheduler.add(make_request(tokens=200, steps=4))
    plan = scheduler.plan(0.0)
    assert len(plan) > 3
    assert scheduler.cost.predict(row.request.tokens for row in plan) <= 50


def test_large_pictures_do_not_share_when_it_only_delays_the_first() -> None:
    scheduler = make_scheduler(budget_ms=10_000)
    first, second = make_request(tokens=4000), make_request(tokens=4000, steps=50, arrival=0.1)
    scheduler.add(first)
    scheduler.add(second)
    assert requests_of(scheduler.plan(0.0)) == [first]


def test_a_picture_over_the_budget_runs_alone() -> None:
    scheduler = make_scheduler(budget_ms=1)
    request = make_request(tokens=100_000)
    scheduler.add(request)
    assert requests_of(scheduler.plan(0.0)) == [request]


def test_models_never_share_a_step() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(tokens=10, group="a"))
    scheduler.add(make_request(tokens=10, group="b"))
    assert len({request.group for request in requests_of(scheduler.plan(0.0))}) == 1


def test_the_model_in_memory_goes_on_until_a_switch_pays() -> None:
    loads_ms = {"a": 0.0, "b": 700.0}
    scheduler = Scheduler(SchedulerConfig(budget_ms=30), CostModel((2.0, 20.0, 4.0)), loads_ms.__getitem__)
    running, short = make_request(steps=10, group="a"), make_request(steps=1, group="b", arrival=0.1)
    scheduler.add(running)
    run_step(scheduler)
    scheduler.add(short)
    for _ in range(9):
        assert requests_of(run_step(scheduler)) == [running]
    assert requests_of(run_step(scheduler)) == [short]
    loads_ms |= {"a": 700.0, "b": 0.0}
    scheduler.add(make_request(steps=1, group="b", arrival=0.2))
    long_ago = make_request(steps=1, group="a", arrival=-10.0)
    scheduler.add(long_ago)
    assert requests_of(run_step(scheduler)) == [long_ago]


def test_a_model_that_is_in_memory_costs_no_switch() -> None:
    scheduler = make_scheduler(budget_ms=30)
    running, short = make_request(steps=10, group="a"), make_request(steps=1, group="b", arrival=0.1)
    scheduler.add(running)
    run_step(scheduler)
    scheduler.add(short)
    assert requests_of(run_step(scheduler)) == [short]


def test_a_full_device_goes_on_with_what_it_holds() -> None:
    scheduler = make_scheduler(max_resident=1)
    held, short = make_request(steps=9, group="a"), make_request(steps=1, group="b", arrival=0.1)
    scheduler.add(held)
    run_step(scheduler)
    scheduler.add(short)
    for _ in range(8):
        assert requests_of(run_step(scheduler)) == [held]
    assert requests_of(run_step(scheduler)) == [short]


def test_memory_is_bounded_by_resident_requests() -> None:
    scheduler = make_scheduler(max_resident=2)
    for _ in range(10):
        scheduler.add(make_request(tokens=10))
    assert len(run_step(scheduler)) == 2
    assert scheduler.running == 2


def test_out_of_memory_halves_the_step_and_is_remembered() -> None:
    scheduler = make_scheduler()
    for _ in range(8):
        scheduler.add(make_request(tokens=100, steps=50))
    plan = scheduler.plan(0.0)
    assert len(plan) == 4
    scheduler.out_of_memory(plan)
    for _ in range(10):
        assert len(run_step(scheduler)) == 2


def test_the_memory_limit_recovers_after_many_clean_steps() -> None:
    scheduler = make_scheduler()
    for _ in range(8):
        scheduler.add(make_request(tokens=100, steps=2000))
    scheduler.out_of_memory(scheduler.plan(0.0))
    for _ in range(5 * 256):  # a tenth more each time: 200 to 321 tokens
        assert len(run_step(scheduler)) == 2
    for _ in range(_REPLAN_STEPS):
        run_step(scheduler)
    assert len(scheduler.plan(0.0)) == 3


def test_a_start_deadline_ends_only_what_has_not_started() -> None:
    scheduler = make_scheduler(max_resident=1)
    running, late = make_request(start_by=5.0), make_request(start_by=5.0, arrival=0.1)
    scheduler.add(running)
    scheduler.add(late)
    assert requests_of(run_step(scheduler)) == [running]
    assert scheduler.expired(4.9) == []
    assert scheduler.expired(5.0) == [late]
    assert scheduler.requests == 1


def test_a_removed_request_is_not_in_the_next_plan() -> None:
    scheduler = make_scheduler()
    gone, stays = make_request(tokens=50), make_request(tokens=50)
    scheduler.add(gone)
    scheduler.add(stays)
    assert len(run_step(scheduler)) == 2
    scheduler.remove(gone)
    scheduler.remove(gone)
    assert requests_of(scheduler.plan(0.0)) == [stays]
    assert scheduler.running == 1


def test_the_plan_is_the_same_object_until_something_happens() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(steps=10))
    first = run_step(scheduler)
    assert first is scheduler.plan(0.0)
    scheduler.add(make_request(tokens=10))
    assert scheduler.plan(0.0) != first


def test_load_counts_remaining_steps() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(steps=10, images=2))
    assert scheduler.load_ms == pytest.approx(20 * 26.0)
    run_step(scheduler)
    assert scheduler.load_ms == pytest.approx(18 * 26.0) or scheduler.load_ms == pytest.approx(19 * 26.0)


class Counting(CostModel):
    """Counts the pictures that a plan looks at."""

    looks = 0

    def row_ms(self, tokens: int) -> float:
        self.looks += 1
        return super().row_ms(tokens)


def test_a_plan_looks_at_few_of_a_thousand_that_wait_though_all_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    postponed = 0
    next_due = Scheduler._next_due

    def counted(self: Scheduler, request: Request, now_ms: float) -> float:
        nonlocal postponed
        postponed += 1
        return next_due(self, request, now_ms)

    monkeypatch.setattr(Scheduler, "_next_due", counted)
    cost = Counting((2.0, 20.0, 4.0))
    scheduler = Scheduler(SchedulerConfig(), cost)
    for number in range(1000):
        scheduler.add(make_request(steps=4, tokens=200 + number % 7))
    for step in range(50):
        cost.looks = postponed = 0
        run_step(scheduler, 100.0 + step)
        assert postponed <= _POSTPONED
        assert cost.looks <= SchedulerConfig().max_rows + _LOOKAHEAD


def test_who_is_late_is_put_off_in_the_next_plans_if_not_in_this_one() -> None:
    scheduler = make_scheduler(budget_ms=30)
    lost = [make_request(steps=50) for _ in range(2 * _POSTPONED)]
    kept = make_request(steps=20, arrival=9.9)
    for request in (*lost, kept):
        scheduler.add(request)
    plans = [requests_of(scheduler.plan(10.0)) for _ in range(3)]
    assert plans[0] != [kept]
    assert plans[2] == [kept]


class Machine(RuleBasedStateMachine):
    """Any order of arrivals, steps, cancels and memory failures: nothing is lost, nothing runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = make_scheduler(max_resident=5, max_rows=6)
        self.live: list[Request] = []
        self.now = 0.0

    @rule(
        steps=st.integers(1, 5),
        tokens=st.integers(1, 5000),
        images=st.integers(1, 3),
        priority=st.integers(0, 1),
        group=st.sampled_from("ab"),
    )
    def arrive(self, steps: int, tokens: int, images: int, priority: int, group: str) -> None:
        self.now += 0.01
        request = make_request(steps, tokens, self.now, priority, images, group)
        self.scheduler.add(request)
        self.live.append(request)

    @precondition(lambda self: self.live)
    @rule(index=st.integers(0, 1000))
    def cancel(self, index: int) -> None:
        self.scheduler.remove(self.live.pop(index % len(self.live)))

    @precondition(lambda self: self.live)
    @rule(only=st.integers(1, 6))
    def step(self, only: int) -> None:
        plan = self.scheduler.plan(self.now)[:only]
        assert plan, "work is left but nothing runs"
        before = [row.steps_left for row in plan]
        for row in plan:
            self.scheduler.admit(row.request)
        through = self.scheduler.advance(plan)
        assert [row.steps_left for row in plan] == [steps - 1 for steps in before]
        assert all(row.steps_left == 0 for row in through)
        self.live = [request for request in self.live if request.steps_left]

    @precondition(lambda self: len(self.scheduler.plan(self.now)) > 1)
    @rule()
    def fail(self) -> None:
        self.scheduler.out_of_memory(self.scheduler.plan(self.now))

    @invariant()
    def every_live_row_is_known_and_no_other(self) -> None:
        assert self.scheduler.requests == len(self.live)
        assert self.scheduler.running == sum(request.is_admitted for request in self.live) <= 5
        plan = self.scheduler.plan(self.now)
        assert bool(plan) == bool(self.live)
        assert len({id(row) for row in plan}) == len(plan)
        assert all(row.request in self.live and row.steps_left > 0 for row in plan)
        assert len({row.request.group for row in plan}) <= 1


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(("load", "seed"), [(0.5, 1), (0.9, 2), (1.2, 3)])
def test_simulated_requests_all_end_and_none_starves(load: float, seed: int) -> None:
    report = Simulation(5000, seed, load).run()
    assert report.finished > 4500


def test_a_simulation_repeats_exactly() -> None:
    first, second = (Simulation(500, 4, 0.9).run() for _ in range(2))
    first.seconds = second.seconds = 0.0
    assert first == second


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_million_simulated_requests() -> None:
    report = Simulation(1_000_000, 1, 0.9).run()
    assert report.finished > 900_000
    assert report.seconds <= 60
