"""What a request's acceleration gives it on a worker, and what it is told when that is less than it asked for."""

from __future__ import annotations

import pytest

from models.accelerator import CpuAccelerator
from models.registry import TINY
from pipelines.engine.acceleration import FLOAT8, AccelerationChoice, choose_acceleration
from pipelines.engine.engine import Engine
from pipelines.protocol.frames import Note
from pipelines.protocol.params import ACCELERATIONS
from tests.pipelines.doubles import FakeRunner
from tests.pipelines.driving import drain, make_engine, make_params, of, submit

FLOAT8_GROUP = TINY.name + FLOAT8
BOTH, WEIGHTS, STEPS = "with float8 weights and step caching", "with float8 weights", "with step caching"
COARSE = "with step caching and coarse first steps"
ALL = "with float8 weights, step caching and coarse first steps"
NOTE = "acceleration {} is not fully available on this worker: drawn {}"


@pytest.mark.parametrize("most", ACCELERATIONS)
@pytest.mark.parametrize("has_float8", [False, True])
def test_none_is_always_exact_and_says_nothing(most: str, has_float8: bool) -> None:
    assert choose_acceleration(make_params(), most, has_float8) == AccelerationChoice(TINY.name)


@pytest.mark.parametrize(
    ("wanted", "most", "has_float8", "expected"),
    [
        ("regular", "high", True, AccelerationChoice(FLOAT8_GROUP, how=WEIGHTS)),
        ("high", "max", True, AccelerationChoice(FLOAT8_GROUP, True, how=BOTH)),
        ("regular", "high", False, AccelerationChoice(TINY.name, note=NOTE.format("regular", "exactly"))),
        ("high", "high", False, AccelerationChoice(TINY.name, True, False, STEPS, NOTE.format("high", STEPS))),
        ("high", "regular", True, AccelerationChoice(FLOAT8_GROUP, how=WEIGHTS, note=NOTE.format("high", WEIGHTS))),
        ("high", "regular", False, AccelerationChoice(TINY.name, note=NOTE.format("high", "exactly"))),
        ("high", "none", True, AccelerationChoice(TINY.name, note=NOTE.format("high", "exactly"))),
        ("regular", "none", True, AccelerationChoice(TINY.name, note=NOTE.format("regular", "exactly"))),
    ],
)
def test_a_worker_gives_what_it_has(wanted: str, most: str, has_float8: bool, expected: AccelerationChoice) -> None:
    assert choose_acceleration(make_params(acceleration=wanted), most, has_float8) == expected


@pytest.mark.parametrize(
    ("most", "has_float8", "can_be_coarse", "expected"),
    [
        ("max", True, True, AccelerationChoice(FLOAT8_GROUP, True, True, ALL)),
        ("max", False, True, AccelerationChoice(TINY.name, True, True, COARSE, NOTE.format("max", COARSE))),
        ("max", True, False, AccelerationChoice(FLOAT8_GROUP, True, False, BOTH, NOTE.format("max", BOTH))),
        ("high", True, True, AccelerationChoice(FLOAT8_GROUP, True, False, BOTH, NOTE.format("max", BOTH))),
    ],
)
def test_first_steps_are_coarse_only_at_max_where_they_can_be(
    most: str, has_float8: bool, can_be_coarse: bool, expected: AccelerationChoice
) -> None:
    assert choose_acceleration(make_params(acceleration="max"), most, has_float8, can_be_coarse) == expected
    assert not choose_acceleration(make_params(acceleration="high"), most, has_float8, can_be_coarse).is_coarse


def test_a_request_is_told_when_it_is_drawn_otherwise_than_asked() -> None:
    engine = make_engine(FakeRunner())
    submit(engine, "exact", make_params())
    submit(engine, "quick", make_params(acceleration="regular"))
    frames = drain(engine)
    assert of(frames, "exact", Note) == []
    assert of(frames, "quick", Note) == [Note("quick", 1, NOTE.format("regular", "exactly"))]


def test_rows_of_other_weights_share_no_step_and_cached_rows_do() -> None:
    runner = FakeRunner()
    runners = {TINY.name: runner, FLOAT8_GROUP: runner}
    engine = Engine(
        runners.__getitem__,
        CpuAccelerator(),
        choose_acceleration=lambda params: choose_acceleration(params, has_float8=params.seed == 8),
    )
    for name, changes in {
        "exact": {},
        "cached": {"seed": 7, "acceleration": "high"},
        "float8": {"seed": 8, "acceleration": "regular"},
    }.items():
        submit(engine, name, make_params(num_inference_steps=30, **changes))
    drain(engine)
    together = {frozenset(step) for step in runner.steps}
    assert frozenset({"exact", "cached"}) in together
    assert not any("float8" in step and len(step) > 1 for step in together)


def test_an_unknown_acceleration_is_refused() -> None:
    with pytest.raises(ValueError, match="none, regular, high, max"):
        make_params(acceleration="ludicrous")
