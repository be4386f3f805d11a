"""A second family runs through engine, pool and worker by a row of the table alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from models.accelerator import CpuAccelerator
from models.errors import LoadError
from models.registry import TINY
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.families.table import FAMILIES
from pipelines.protocol import frames as protocol
from pipelines.protocol.frames import Cancel, Cancelled, Failed, Finished, Frame, Preview, Progress
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, make_params, of, pictures, submit
from tests.pipelines.flat_family import COLOURS, FLAT, SPEC, FlatRunner
from tests.pipelines.worker.test_worker import worker


class Float8Device(CpuAccelerator):
    """A CPU that claims to gain from float8."""

    has_float8 = True


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> ModelPool:
    monkeypatch.setitem(FAMILIES, SPEC.family, FLAT)
    return ModelPool([SPEC, TINY], Float8Device())


@pytest.fixture
def runner(pool: ModelPool) -> FlatRunner:
    runner = pool.runner(SPEC.name)
    assert isinstance(runner, FlatRunner)
    return runner


@pytest.fixture
def engine(pool: ModelPool) -> Engine:
    """On a clock that ticks with every look, so that what packs together does not depend on the machine."""
    clock = itertools.count(step=0.001).__next__
    return Engine(pool.runner, CpuAccelerator(), clock=clock, choose_acceleration=pool.choose_acceleration)


def flat(prompt: str, **changes: object) -> GenerationParams:
    return make_params(**({"model": SPEC.name, "prompt": prompt} | changes))


def is_flat(picture: np.ndarray, prompt: str) -> bool:
    return bool((picture == np.round(np.array(COLOURS[prompt]) * 255)).all())


def test_requests_of_different_sizes_and_lengths_join_running_steps(engine: Engine, runner: FlatRunner) -> None:
    late = {
        2: ("green", {"num_inference_steps": 8, "width": 7, "height": 5}),
        3: ("blue", {"num_inference_steps": 9, "num_images": 2}),
    }
    submit(engine, "red", flat("red", num_inference_steps=12))

    def join(step: int) -> None:
        if step in late:
            prompt, changes = late[step]
            submit(engine, prompt, flat(prompt, **changes))

    frames = drain(engine, join)
    assert {name: len(of(frames, name, Finished)) for name in COLOURS} == dict.fromkeys(COLOURS, 1)
    assert all(is_flat(picture, name) for name in COLOURS for picture in pictures(frames, name))
    assert pictures(frames, "green")[0].shape == (5, 7, 3)
    assert len(pictures(frames, "blue")) == 2
    assert any(set(step) == set(COLOURS) for step in runner.steps)


def test_a_cancel_takes_effect_between_steps_and_leaves_the_neighbour(engine: Engine, runner: FlatRunner) -> None:
    submit(engine, "gone", flat("red", num_inference_steps=50))
    submit(engine, "stays", flat("blue", num_inference_steps=8))
    frames = drain(engine, lambda step: engine.abort(Cancel("gone", 1)) if step == 4 else None)
    assert len(of(frames, "gone", Cancelled)) == 1
    assert not pictures(frames, "gone")
    assert is_flat(pictures(frames, "stays")[0], "blue")
    assert sum("gone" in step for step in runner.steps) < 8


def test_its_own_limits_errors_and_previews_are_used(engine: Engine) -> None:
    submit(engine, "large", flat("red", width=4096))
    submit(engine, "unknown", flat("mauve"))
    submit(engine, "seen", flat("green", preview_every=2))
    frames = drain(engine)
    assert of(frames, "large", Failed) == [Failed("large", 1, "model_error", "that is too large for a flat picture")]
    assert of(frames, "unknown", Failed) == [Failed("unknown", 1, "model_error", "no colour is called mauve")]
    (preview,) = of(frames, "seen", Preview)
    assert preview == Preview("seen", 1, 2, 0, 1, 1, bytes((0, 255, 0)))
    assert len(of(frames, "seen", Progress)) == 4


def test_two_families_share_pool_and_engine_but_no_step(engine: Engine, runner: FlatRunner, pool: ModelPool) -> None:
    submit(engine, "flux", make_params())
    submit(engine, "flat", flat("red"))
    frames = drain(engine)
    assert is_flat(pictures(frames, "flat")[0], "red")
    assert pictures(frames, "flux")[0].shape == (32, 48, 3)
    assert set(runner.steps) == {("flat",)}
    assert sorted(pool.loaded) == [SPEC.name, TINY.name]


def test_only_a_family_with_a_part_for_it_is_held_in_float8(pool: ModelPool) -> None:
    pool.runner(SPEC.name), pool.runner(TINY.name)
    pool.hold_float8()
    groups = [
        pool.choose_acceleration(make_params(model=name, acceleration="regular")).group
        for name in (SPEC.name, TINY.name)
    ]
    assert groups == [SPEC.name, TINY.name + "+float8"]


def test_a_family_that_is_not_in_the_table_is_named() -> None:
    with pytest.raises(LoadError, match="model flat is of the family flat; known are flux"):
        ModelPool([SPEC], CpuAccelerator()).runner(SPEC.name)


def test_the_worker_process_serves_it() -> None:
    script = "import os, sys, pipelines.worker.__main__ as w\n"
    script += "from models.registry import REGISTRY\n"
    script += "from pipelines.families.table import FAMILIES\n"
    script += "from tests.pipelines.flat_family import FLAT, SPEC\n"
    script += "FAMILIES[SPEC.family], REGISTRY[SPEC.name] = FLAT, SPEC\n"
    script += "os._exit(w.main(sys.argv[1:]))"
    with worker("--device", "cpu", "--model", SPEC.name, "--warmup", "none", program=("-c", script)) as peer:
        ready = peer.until(protocol.Ready)[-1]
        assert isinstance(ready, protocol.Ready)
        described = {key: ready.models[0][key] for key in ("name", "family", "size_multiple", "has_safety_checker")}
        assert described == {"name": "flat", "family": "flat", "size_multiple": 1, "has_safety_checker": False}
        peer.send(protocol.Submit("a", 1, flat("blue").to_dict()))
        frames: list[Frame] = peer.until(protocol.Finished, "a")
    assert is_flat(pictures(frames, "a")[0], "blue")
