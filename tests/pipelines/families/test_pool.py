"""The weights a worker holds beside the exact ones, and which of them draw a request."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from models.accelerator import CpuAccelerator
from models.float8 import Float8Linear
from models.registry import REGISTRY, ModelSpec
from pipelines.engine.acceleration import FLOAT8
from pipelines.engine.engine import Engine
from pipelines.families.pool import ModelPool
from pipelines.protocol.conditions import Redux
from pipelines.protocol.frames import Failed, Note
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, make_params, pictures, submit
from tests.pipelines.families.flux1.families import picture, save_estimator, saved_prior

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


@pytest.fixture
def prior(tmp_path: Path) -> ModelSpec:
    """A Redux prior in a folder, for flux-shapes."""
    return saved_prior(tmp_path, joint_dim=128)


def test_what_only_helps_is_loaded_by_the_request_that_needs_it(prior: ModelSpec) -> None:
    pool = ModelPool([SHAPES, prior], CpuAccelerator())
    assert (list(pool.specs), list(pool.helpers)) == ([NAME], ["prior"])
    pool.runner(NAME)
    before = pool.weights()
    engine = Engine(pool.runner, CpuAccelerator(), choose_acceleration=pool.choose_acceleration)
    params = small(num_inference_steps=1, conditions=(Redux((0,), "prior"),))
    submit(engine, "a", params, pictures=[picture(20, 20).to_dict()])
    assert len(pictures(drain(engine), "a")) == 1
    assert pool.weights() > before
    assert pool.loaded == [NAME]
    assert pool.auxiliary("redux") is pool.auxiliary("prior")


def test_helpers_and_checkpoints_make_room_for_each_other(prior: ModelSpec) -> None:
    pool = ModelPool([SHAPES, prior], CpuAccelerator(), memory_bytes=1)
    pool.auxiliary("prior")
    pool.runner(NAME)
    assert list(pool._held) == [NAME]
    with_model = pool.weights()
    pool.auxiliary("prior")
    assert list(pool._held) == ["prior"]
    assert pool.weights() < with_model


def test_a_helper_does_not_draw_and_a_checkpoint_does_not_help(prior: ModelSpec) -> None:
    pool = ModelPool([SHAPES, prior], CpuAccelerator())
    for refused in (lambda: pool.runner("prior"), lambda: pool.auxiliary(NAME), lambda: pool.auxiliary("nobody")):
        with pytest.raises(KeyError):
            refused()


def test_a_checkpoint_may_bring_its_own_depth_estimator(tmp_path: Path) -> None:
    save_estimator(tmp_path / "depth_estimator")
    pool = ModelPool([SHAPES, ModelSpec("mine", str(tmp_path), variant="depth")], CpuAccelerator())
    assert pool.auxiliary("depth-estimator").spec.name == "mine/depth_estimator"


def test_a_sibling_that_cannot_be_loaded_fails_its_request_and_tells_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ModelSpec("broken", str(tmp_path), variant="kontext", base=NAME)
    monkeypatch.setattr("pipelines.families.pool.siblings", lambda specs: (broken,))
    notes: list[str] = []
    pool = ModelPool([SHAPES], CpuAccelerator(), note=notes.append)
    engine = Engine(pool.runner, CpuAccelerator(), choose_acceleration=pool.choose_acceleration)
    submit(engine, "a", small(model="broken"))
    submit(engine, "b", small(num_inference_steps=1))
    frames = drain(engine)
    (failed,) = [frame for frame in frames if isinstance(frame, Failed)]
    assert failed.message == "the model broken cannot be loaded here"
    assert "model_index.json" in notes[0]
    assert len(pictures(frames, "b")) == 1


def test_an_unloaded_pool_holds_nothing_and_loads_what_is_asked_for_again() -> None:
    pool = make_pool()
    transformer = weakref.ref(pool.runner(NAME).components.transformer)
    pool.unload()
    gc.collect()
    assert transformer() is None
    assert (pool.loaded, pool.weights()) == ([], 0)
    assert rounded(pool, NAME) == 0
    assert rounded(pool, NAME + FLOAT8) == 44
