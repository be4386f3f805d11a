"""FLUX.2 beside FLUX.1 in one worker's memory."""

from __future__ import annotations

from models.accelerator import CpuAccelerator
from models.registry import TINY, TINY_KLEIN
from pipelines.engine.engine import Engine
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.families.pool import ModelPool
from pipelines.protocol.frames import Finished
from tests.pipelines.driving import drain, make_params, of, pictures, submit


def test_one_worker_draws_with_both_generations() -> None:
    pool = ModelPool([TINY, TINY_KLEIN], CpuAccelerator())
    engine = Engine(pool.runner, CpuAccelerator(), choose_acceleration=pool.choose_acceleration)
    submit(engine, "old", make_params())
    submit(engine, "new", make_params(model=TINY_KLEIN.name))
    frames = drain(engine)
    assert isinstance(pool.runner(TINY_KLEIN.name), Flux2Runner)
    for job in ("old", "new"):
        assert of(frames, job, Finished)
        assert pictures(frames, job)[0].shape == (32, 48, 3)


def test_it_is_never_said_to_skip_steps() -> None:
    pool = ModelPool([TINY, TINY_KLEIN], CpuAccelerator())
    choice = pool.choose_acceleration(make_params(model=TINY_KLEIN.name, acceleration="high"))
    assert (choice.caches_steps, choice.how) == (False, "exactly")
    assert choice.note is not None
    assert pool.choose_acceleration(make_params(acceleration="high")).caches_steps
