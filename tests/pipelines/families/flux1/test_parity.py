"""The engine against diffusers' own FluxPipeline, and against itself in company."""

from __future__ import annotations

import numpy as np
import pytest

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.loading import load
from models.registry import REGISTRY
from pipelines.engine.engine import Engine
from pipelines.families.flux1.reference import reference_pictures
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.frames import Cancel, Cancelled, Finished
from tests.pipelines.driving import drain, make_engine, make_params, of, pictures, submit

TOLERANCE = 1
"""Levels of 255 that company may move a pixel by on a CPU: matrix products over more rows may round differently."""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 64, "height": 64, "num_inference_steps": 1},
        {"width": 40, "height": 72, "guidance_scale": 1.0, "seed": 2**40, "prompt": ""},
        {"num_images": 3, "num_inference_steps": 2, "prompt": "x" * 500},
        {"max_sequence_length": 5},
    ],
)
def test_lone_request_equals_diffusers_bit_for_bit(
    components: FluxComponents, runner: FluxRunner, changes: dict[str, object]
) -> None:
    params = make_params(**changes)
    engine = make_engine(runner)
    submit(engine, "a", params)
    ours = pictures(drain(engine), "a")
    theirs = reference_pictures(components, params)
    assert len(ours) == params.num_images
    if params.num_images == 1:
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    else:
        assert max(_distance(a, b) for a, b in zip(ours, theirs, strict=True)) <= TOLERANCE
    assert np.std(ours[0]) > 20, "a flat picture would prove nothing"


def test_the_embedded_model_equals_diffusers_bit_for_bit() -> None:
    spec = REGISTRY["flux-shapes"]
    shapes = load(spec, CpuAccelerator())
    params = make_params(model=spec.name, width=256, height=192, num_inference_steps=3)
    embedded = FluxRunner(shapes, CpuAccelerator())
    engine = Engine(lambda name: embedded, CpuAccelerator())
    submit(engine, "a", params)
    (ours,) = pictures(drain(engine), "a")
    assert np.array_equal(ours, reference_pictures(shapes, params)[0])


def test_odd_size_is_the_middle_of_the_next_drawable_one(components: FluxComponents, runner: FluxRunner) -> None:
    params = make_params(width=43, height=30)
    engine = make_engine(runner)
    submit(engine, "a", params)
    (ours,) = pictures(drain(engine), "a")
    (drawn,) = reference_pictures(components, params)
    assert drawn.shape == (32, 48, 3)
    assert np.array_equal(ours, drawn[1:31, 2:45])


STRANGERS = [
    {"width": 64, "height": 64, "num_inference_steps": 6, "seed": 1, "prompt": "blue"},
    {"width": 16, "height": 8, "num_inference_steps": 2, "seed": 2, "guidance_scale": 7.0},
    {"width": 48, "height": 32, "num_inference_steps": 5, "seed": 3, "max_sequence_length": 9},
    {"width": 96, "height": 24, "num_inference_steps": 3, "seed": 4},
    {"width": 8, "height": 8, "num_inference_steps": 9, "seed": 5, "num_images": 2},
    {"width": 40, "height": 80, "num_inference_steps": 1, "seed": 6},
    {"width": 64, "height": 64, "num_inference_steps": 4, "seed": 8, "prompt": "two squares"},
]


@pytest.mark.parametrize("strangers", [1, 3, 7])
def test_neighbours_do_not_change_a_picture(runner: FluxRunner, strangers: int) -> None:
    alone = _alone(runner)
    engine = make_engine(runner)
    submit(engine, "a", make_params())
    for index, changes in enumerate(STRANGERS[:strangers]):
        submit(engine, f"s{index}", make_params(**changes))
    assert _distance(pictures(drain(engine), "a")[0], alone) <= TOLERANCE


def test_joining_half_way_changes_nothing(runner: FluxRunner) -> None:
    alone = _alone(runner)
    engine = make_engine(runner)
    submit(engine, "long", make_params(num_inference_steps=12, width=64, height=64))

    def join(step: int) -> None:
        if step == 5:
            submit(engine, "a", make_params())

    frames = drain(engine, join)
    assert _distance(pictures(frames, "a")[0], alone) <= TOLERANCE
    assert of(frames, "long", Finished)


def test_a_cancelled_neighbour_changes_nothing(runner: FluxRunner) -> None:
    alone = _alone(runner)
    engine = make_engine(runner)
    submit(engine, "a", make_params())
    submit(engine, "b", make_params(width=64, height=64, seed=9))

    def cancel(step: int) -> None:
        if step == 2:
            engine.abort(Cancel("b", 1))

    frames = drain(engine, cancel)
    assert of(frames, "b", Cancelled)
    assert _distance(pictures(frames, "a")[0], alone) <= TOLERANCE


def test_order_of_arrival_changes_nothing(runner: FluxRunner) -> None:
    def run(order: list[int]) -> list[np.ndarray]:
        engine = make_engine(runner)
        for index in order:
            submit(engine, f"s{index}", make_params(**STRANGERS[index]))
        frames = drain(engine)
        return [pictures(frames, f"s{index}")[0] for index in range(len(STRANGERS))]

    forward, backward = run(list(range(7))), run(list(reversed(range(7))))
    assert max(_distance(a, b) for a, b in zip(forward, backward, strict=True)) <= TOLERANCE


def test_pictures_of_one_request_have_consecutive_seeds(runner: FluxRunner) -> None:
    engine = make_engine(runner)
    submit(engine, "three", make_params(num_images=3))
    for index in range(3):
        submit(engine, f"one{index}", make_params(seed=7 + index))
    frames = drain(engine)
    for index, picture in enumerate(pictures(frames, "three")):
        assert _distance(picture, pictures(frames, f"one{index}")[0]) <= TOLERANCE


def _alone(runner: FluxRunner) -> np.ndarray:
    engine = make_engine(runner)
    submit(engine, "a", make_params())
    return pictures(drain(engine), "a")[0]


def _distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())
