"""A model on demand is loaded beside the steps of others, once, and its failure is only its own requests'."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from models.accelerator import CpuAccelerator
from models.construction import CONSTRUCTION
from models.registry import TINY, TINY_KLEIN, TINY_KLEIN_BASE, ModelSpec
from pipelines.engine.acceleration import FLOAT8
from pipelines.engine.engine import Engine
from pipelines.families import pool as pool_module
from pipelines.families.pool import LOAD_MS, RETRY_S, ModelPool
from pipelines.protocol.conditions import Condition, Redux
from pipelines.protocol.frames import Cancel, Cancelled, Failed, Finished, Frame, Picture, Submit, Waits
from pipelines.worker.arrivals import Arrivals
from tests.pipelines.driving import make_params
from tests.pipelines.families.flux1.families import picture, saved_prior

OTHER = TINY_KLEIN.name


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """An engine, its pool and what arrives; `gate` holds a load back until it is set; then it takes `load_s`."""

    load_s = 0.0

    def __init__(self, offers: tuple[ModelSpec, ...] = (TINY_KLEIN,), **options: Any) -> None:
        self.clock, self.gate, self.loads, self.notes = Clock(), threading.Event(), list[str](), list[str]()
        self.gate.set()
        given: dict[str, Any] = {"note": self.notes.append, "offers": offers, "clock": self.clock} | options
        self.pool = ModelPool([TINY], CpuAccelerator(), **given)
        for load in ("_load_runner", "_load_auxiliary"):
            setattr(self.pool, load, partial(self._gated, getattr(self.pool, load)))
        self.pool.load_all()
        self.engine = Engine(
            self.pool.runner,
            CpuAccelerator(),
            choose_acceleration=self.pool.choose_acceleration,
            switch_ms=self.pool.switch_ms,
        )
        self.arrivals = Arrivals(self.engine, self.pool, clock=self.clock)

    def _gated(self, load: Callable[[ModelSpec], Any], spec: ModelSpec) -> Any:
        self.loads.append(spec.name)
        assert self.gate.wait(30)
        self.clock.now += self.load_s
        return load(spec)

    def ask(self, job_id: str, model: str = OTHER, conditions: tuple[Condition, ...] = (), **options: Any) -> None:
        params = make_params(model=model, guidance_scale=1.0, num_inference_steps=2, conditions=conditions)
        self.arrivals.add(Submit(job_id, 1, params.to_dict(), **options))

    def turn(self) -> list[Frame]:
        return [*self.arrivals.look(), *self.engine.step()]

    def until_quiet(self) -> dict[str, list[type]]:
        """Kinds of frames by job, but for what it waits for, until nothing is under way."""
        seen: dict[str, list[type]] = {}
        for _ in range(10_000):
            frames = self.turn()
            if not frames:
                time.sleep(0.002)  # a model is being loaded
            for frame in frames:
                if not isinstance(frame, Waits):
                    seen.setdefault(getattr(frame, "job_id", ""), []).append(type(frame))
            if not (self.engine.has_work or self.arrivals.waiting or self.pool.is_loading):
                return seen
        raise AssertionError("it is still busy")


def test_others_go_on_while_a_model_is_loaded_and_its_requests_follow() -> None:
    bench = Bench()
    bench.gate.clear()
    bench.ask("other")
    bench.turn()
    bench.ask("given", TINY.name)
    seen: list[Frame] = []
    while not any(isinstance(frame, Finished) and frame.job_id == "given" for frame in seen):
        seen += bench.turn()
    assert bench.pool.loaded == [TINY.name]
    assert bench.arrivals.waiting == 1
    bench.ask("late")
    bench.gate.set()
    kinds = bench.until_quiet()
    assert {job for job, found in kinds.items() if Picture in found and Finished in found} == {"other", "late"}
    assert bench.loads == [TINY.name, OTHER]


def test_a_load_that_fails_ends_its_own_requests_and_is_not_tried_for_each(tmp_path: Path) -> None:
    broken = replace(TINY_KLEIN, name="broken", source=str(tmp_path))
    bench = Bench((broken,))
    for job in ("a", "b"):
        bench.ask(job, "broken")
    bench.ask("given", TINY.name)
    kinds = bench.until_quiet()
    bench.ask("c", "broken")
    kinds |= bench.until_quiet()
    assert [job for job, found in kinds.items() if Failed in found] == ["a", "b", "c"]
    assert Finished in kinds["given"]
    assert bench.loads.count("broken") == len(bench.notes) == 1
    bench.clock.now += RETRY_S
    bench.ask("d", "broken")
    assert bench.until_quiet()["d"] == [Failed]
    assert bench.loads.count("broken") == 2


def test_a_fault_that_nobody_foresaw_ends_a_request_and_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr(pool_module, "family_of", lambda spec: 1 / 0)
    bench.ask("a")
    assert bench.until_quiet()["a"] == [Failed]
    assert "ZeroDivisionError" in bench.notes[0]


def test_an_idle_model_makes_room_and_a_busy_one_takes_turns() -> None:
    bench = Bench(memory_bytes=1)
    bench.ask("other")
    bench.until_quiet()
    assert bench.pool.loaded == [OTHER]
    bench.ask("other")
    bench.arrivals.look()
    bench.ask("given", TINY.name)
    assert not bench.pool.begin(TINY.name)
    kinds = bench.until_quiet()
    assert Finished in kinds["other"]
    assert Finished in kinds["given"]


def test_a_model_that_had_to_be_loaded_is_drawn_with_before_the_other_comes_back() -> None:
    """What it can draw is known only from its weights, which then are there."""
    bench = Bench(memory_bytes=1)
    bench.load_s = 10.0
    bench.pool._load_ms[TINY.name] = 10_000.0
    bench.ask("given", TINY.name)
    bench.turn()
    bench.ask("other")
    kinds = bench.until_quiet()
    assert all(Finished in kinds[job] for job in ("given", "other"))
    assert bench.loads == [TINY.name, OTHER, TINY.name]


def test_who_waits_for_a_model_can_be_cancelled_and_may_come_too_late() -> None:
    bench = Bench()
    bench.gate.clear()
    for job, within_s in (("cancelled", None), ("late", 5.0), ("patient", None)):
        bench.ask(job, start_within_s=within_s)
    bench.turn()
    bench.arrivals.abort(Cancel("cancelled", 1))
    assert Cancelled("cancelled", 1, 0) in bench.turn()
    bench.clock.now += 5
    assert Failed("late", 1, "deadline", "the request did not start in time") in bench.turn(), "it is told when due"
    assert bench.pool.is_loading
    bench.gate.set()
    kinds = bench.until_quiet()
    assert Finished in kinds["patient"]
    assert not {"cancelled", "late"} & set(kinds)


def test_an_unknown_model_is_no_reason_to_load() -> None:
    bench = Bench()
    bench.ask("a", "black-forest-labs/FLUX.1-dev")
    assert bench.until_quiet()["a"] == [Failed]
    assert bench.loads == [TINY.name]


def test_a_step_that_needs_what_another_thread_loads_waits_for_it() -> None:
    bench = Bench()
    with CONSTRUCTION.undisturbed():  # as the worker's loop holds it in a step
        assert bench.pool.begin(OTHER)
        assert bench.pool.runner(OTHER).components.spec == TINY_KLEIN
    assert bench.loads == [TINY.name, OTHER]


def test_requests_follow_their_model_also_if_something_else_took_it_over() -> None:
    """A helper that a step needs is loaded at once, and what another thread loads is taken over before."""
    bench = Bench()
    bench.gate.clear()
    bench.ask("other")
    bench.turn()
    assert bench.pool.is_loading
    bench.gate.set()
    bench.pool._finish_loading()
    kinds = bench.until_quiet()
    assert Finished in kinds["other"]
    bench.ask("again")
    assert Finished in bench.until_quiet()["again"]


def test_models_are_loaded_again_after_the_device_was_freed_while_one_was_on_its_way() -> None:
    bench = Bench()
    bench.gate.clear()
    bench.ask("cancelled")
    bench.turn()
    bench.arrivals.abort(Cancel("cancelled", 1))
    bench.gate.set()
    bench.pool.unload()
    bench.ask("next")
    assert Finished in bench.until_quiet()["next"]


def test_the_time_that_a_caller_gives_counts_from_when_it_asked() -> None:
    bench = Bench()
    bench.gate.clear()
    bench.ask("other", done_within_s=20.0)
    bench.turn()
    bench.clock.now += 5
    bench.gate.set()
    given: list[tuple[Submit, float]] = []
    bench.engine.add_request = lambda submit, waited_s: given.append((submit, waited_s))  # type: ignore[method-assign]
    while not given:
        bench.arrivals.look()
        time.sleep(0.002)
    ((submit, waited_s),) = given
    assert (submit.age_s, submit.done_within_s, waited_s) == (5.0, 15.0, 5.0)


def test_the_wait_for_a_model_is_in_the_timings() -> None:
    bench = Bench()
    bench.gate.clear()
    bench.ask("other")
    bench.turn()
    bench.clock.now += 5
    bench.gate.set()
    seen: list[Frame] = []
    while not seen or not isinstance(seen[-1], Finished):
        seen += bench.turn()
    assert 5.0 <= seen[-1].timings["queue_wait"] < 60.0


@pytest.fixture
def prior(tmp_path: Path) -> ModelSpec:
    """A Redux prior in a folder, for the tiny FLUX."""
    return saved_prior(tmp_path, joint_dim=24)


def test_what_only_helps_is_loaded_beside_the_steps_of_others_too(prior: ModelSpec) -> None:
    bench = Bench((prior,))
    bench.gate.clear()
    pictures = [picture(20, 20).to_dict()]
    bench.ask("helped", TINY.name, (Redux((0,), "prior"),), pictures=pictures)
    assert bench.turn() == [Waits("helped", 1, "prior")]
    bench.ask("given", TINY.name)
    seen: list[Frame] = []
    while not any(isinstance(frame, Finished) and frame.job_id == "given" for frame in seen):
        seen += bench.turn()
    assert bench.arrivals.waiting == 1
    bench.gate.set()
    assert Finished in bench.until_quiet()["helped"]
    assert bench.loads == [TINY.name, "prior"]
    bench.ask("again", TINY.name, (Redux((0,), "prior"),), pictures=pictures)
    assert bench.arrivals.waiting == 0, "it is there"


def test_what_is_drawn_with_stays_until_it_is_idle_however_little_room_there_is(
    prior: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was foreseen of a checkpoint may be less than it takes."""
    monkeypatch.setattr(pool_module, "outlook", lambda *others: (0, set()))
    bench = Bench((TINY_KLEIN, prior))
    bench.pool._memory_bytes = bench.pool.weights() + 1
    bench.ask("other")
    bench.ask("helped", TINY.name, (Redux((0,), "prior"),), pictures=[picture(20, 20).to_dict()])
    kinds = bench.until_quiet()
    assert all(Finished in kinds[job] for job in ("other", "helped"))
    assert bench.loads == [TINY.name, OTHER, "prior"], "the first was needed all the time"
    bench.turn()
    assert bench.pool.weights() <= bench.pool._memory_bytes, "now all of them are idle"


def test_idle_models_go_before_busy_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench((TINY_KLEIN, TINY_KLEIN_BASE))
    bench.ask("other")
    bench.until_quiet()
    monkeypatch.setattr(pool_module, "outlook", lambda *others: (1, set()))
    bench.pool.runner(TINY.name)  # now the other one was used longest ago
    bench.pool.busy = lambda: {OTHER}
    bench.pool._memory_bytes = bench.pool.weights()
    bench.pool.runner(TINY_KLEIN_BASE.name)
    assert bench.pool.loaded == [OTHER, TINY_KLEIN_BASE.name]


def test_a_switch_costs_what_the_load_took_and_nothing_while_the_model_is_held() -> None:
    bench = Bench()
    assert (bench.pool.switch_ms(TINY.name), bench.pool.switch_ms(OTHER)) == (0.0, LOAD_MS)
    bench.gate.clear()
    bench.ask("other")
    bench.turn()
    bench.clock.now += 3
    bench.gate.set()
    bench.until_quiet()
    assert bench.pool.switch_ms(OTHER + FLOAT8) == 0.0
    bench.pool.unload()
    assert bench.pool.switch_ms(OTHER + FLOAT8) == 3_000.0


def test_making_room_downloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands between two steps; the loading thread may download."""
    looked_at: list[bool] = []
    monkeypatch.setattr(pool_module, "outlook", lambda spec, *others: looked_at.append(spec.fetches) or (0, set()))
    bench = Bench((replace(TINY_KLEIN, fetches=True),))
    bench.ask("other")
    bench.until_quiet()
    assert looked_at
    assert not any(looked_at)
