"""The weights a worker holds beside the exact ones, and which of them draw a request."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from models.accelerator import CpuAccelerator
from models.float8 import Float8Linear
from models.registry import REGISTRY
from pipelines.engine.acceleration import FLOAT8
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.protocol.frames import Note
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, make_params, pictures, submit

SHAPES = REGISTRY["flux-shapes"]
NAME = SHAPES.name


class Float8Device(CpuAccelerator):
    """A CPU that claims to gain from float8; it emulates the product."""

    has_float8 = True


def make_pool(device: type[CpuAccelerator] = Float8Device, **options: object) -> ModelPool:
    pool = ModelPool([SHAPES], device(), **options)  # type: ignore[arg-type]
    pool.runner(NAME)
    pool.hold_float8()
    return pool


def small(**changes: object) -> GenerationParams:
    return make_params(**({"model": NAME, "width": 256, "height": 256, "num_inference_steps": 6} | changes))


def rounded(pool: ModelPool, group: str) -> int:
    """How many float8 linears this group's transformer has."""
    modules: list[nn.Module] = list(pool.runner(group).components.transformer.modules())
    return sum(isinstance(module, Float8Linear) for module in modules)


def test_exact_and_float8_weights_stand_side_by_side_and_share_the_rest() -> None:
    lone, pool = make_pool(CpuAccelerator), make_pool()
    exact, copy = pool.runner(NAME), pool.runner(NAME + FLOAT8)
    assert (rounded(pool, NAME), rounded(pool, NAME + FLOAT8)) == (0, 44)
    assert copy.components.vae is exact.components.vae
    assert copy.components.transformer.x_embedder.weight is exact.components.transformer.x_embedder.weight
    assert lone.weights() < pool.weights() < 1.3 * lone.weights()


def test_requests_of_every_level_share_one_engine_and_none_is_exact() -> None:
    pool = make_pool()
    engine = Engine(pool.runner, CpuAccelerator(), choose_acceleration=pool.choose_acceleration)
    levels = ("none", "regular", "high")
    for level in levels:
        submit(engine, level, small(acceleration=level))
    frames = drain(engine)
    drawn = {level: pictures(frames, level)[0].astype(int) for level in levels}
    assert not any(isinstance(frame, Note) for frame in frames)

    alone = Engine(make_pool(CpuAccelerator).runner, CpuAccelerator())
    submit(alone, "a", small())
    assert np.abs(drawn["none"] - pictures(drain(alone), "a")[0]).max() <= 1
    assert 0 < np.abs(drawn["regular"] - drawn["none"]).mean() < 8
    assert np.std(drawn["regular"]) > 10


@pytest.mark.parametrize("acceleration", ["regular", "high"])
def test_neighbours_do_not_change_a_float8_picture(acceleration: str) -> None:
    pool = make_pool()

    def draw(*strangers: GenerationParams) -> np.ndarray:
        engine = Engine(pool.runner, CpuAccelerator(), choose_acceleration=pool.choose_acceleration)
        submit(engine, "a", small(acceleration=acceleration))
        for index, params in enumerate(strangers):
            submit(engine, str(index), params)
        return pictures(drain(engine), "a")[0].astype(int)

    company = draw(*(small(acceleration=acceleration, seed=seed, width=192) for seed in (1, 2)), small(seed=3))
    assert np.abs(company - draw()).max() <= 1


@pytest.mark.parametrize(
    ("device", "options"),
    [
        (CpuAccelerator, {}),
        (Float8Device, {"acceleration": "none"}),
        (Float8Device, {"memory_bytes": 10_000_000}),
        (Float8Device, {"quantization": "fp8"}),
    ],
    ids=["no gain", "not wanted", "no room", "the only weights are float8"],
)
def test_no_float8_copy_is_held(device: type[CpuAccelerator], options: dict[str, object]) -> None:
    pool = make_pool(device, **options)
    assert pool.runner(NAME + FLOAT8) is pool.runner(NAME)


def test_with_float8_weights_only_regular_is_what_it_asks_for() -> None:
    choice = make_pool(quantization="fp8").choose_acceleration(small(acceleration="regular"))
    assert (choice.group, choice.how, choice.note) == (NAME, "with float8 weights", None)


def test_weights_made_to_go_take_their_float8_copy_along() -> None:
    schnell = REGISTRY["flux-shapes-schnell"]
    pool = ModelPool([SHAPES, schnell], Float8Device(), memory_bytes=40_000_000)
    pool.runner(NAME)
    pool.runner(schnell.name)
    pool.hold_float8()
    held = pool.weights()
    pool._memory_bytes = 1
    pool._unload_over_budget()
    assert pool.loaded == [schnell.name]
    assert pool.runner(schnell.name + FLOAT8) is not pool.runner(schnell.name)
    assert pool.weights() < held
