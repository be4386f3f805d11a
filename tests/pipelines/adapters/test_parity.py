"""Adapters in the packed engine against diffusers' `load_lora_weights` and `set_adapters`, and against themselves."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from models.loading import load
from models.registry import REGISTRY, ModelSpec
from pipelines.adapters.cache import AdapterCache
from pipelines.engine.engine import Engine
from pipelines.families.flux1.limits import Flux1Limits
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import Adapter
from pipelines.protocol.frames import Cancel, Cancelled, Finished
from pipelines.protocol.params import GenerationParams
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.driving import drain, make_engine, make_params, of, pictures, submit

TOLERANCE = 1
"""Levels of 255: PEFT scales the low-rank product before it is added, we while adding."""

ALL = ("",)
"""Every linear there is: blocks, embedders, modulation, time and guidance, the last projection."""


def draw(runner: FluxRunner, params: GenerationParams) -> np.ndarray:
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", params)
    frames = drain(engine)
    assert of(frames, "a", Finished), frames
    return pictures(frames, "a")[0]


def oracle(components: FluxComponents, params: GenerationParams, adapters: Mapping[Path, float]) -> np.ndarray:
    """diffusers' own picture with these files at these scales."""
    own = replace(
        components,
        transformer=copy.deepcopy(components.transformer),
        text_encoder=copy.deepcopy(components.text_encoder),
    )
    pipeline = own.pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second adapter, which is what we want
        for file in adapters:
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=file.stem)
    pipeline.set_adapters([file.stem for file in adapters], list(adapters.values()))
    limits = Flux1Limits.of(components)
    output = pipeline(
        params.prompt,
        height=params.height,
        width=params.width,
        num_inference_steps=params.num_inference_steps,
        guidance_scale=params.guidance_scale,
        max_sequence_length=limits.text_tokens(params),
        generator=torch.Generator().manual_seed(params.seed),
    )
    return np.asarray(output.images[0])


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize(("among", "but"), [(("transformer_blocks.", "single_"), ".norm"), (ALL, "no layer")])
def test_one_adapter_draws_what_diffusers_draws(
    components: FluxComponents, adapting: FluxRunner, tmp_path: Path, among: tuple[str, ...], but: str
) -> None:
    file = save_diffusers(random_lora(components.transformer, 3, 1, among=among, but=but), tmp_path / "one.safetensors")
    plain = make_params()
    adapted = replace(plain, adapters=(Adapter(file.name, 0.7),))
    ours = draw(adapting, adapted)
    assert distance(ours, oracle(components, plain, {file: 0.7})) <= TOLERANCE
    assert distance(ours, draw(adapting, plain)) > 50, "the adapter must show"


def test_two_adapters_with_scales_draw_what_diffusers_draws(
    components: FluxComponents, adapting: FluxRunner, tmp_path: Path
) -> None:
    one = save_diffusers(random_lora(components.transformer, 3, 1), tmp_path / "one.safetensors")
    two = save_diffusers(random_lora(components.transformer, 5, 2, among=("single_",)), tmp_path / "two.safetensors")
    params = make_params(adapters=(Adapter(one.name, 0.5), Adapter(two.name, -0.8)))
    assert distance(draw(adapting, params), oracle(components, params, {one: 0.5, two: -0.8})) <= TOLERANCE


def test_a_part_for_the_text_encoder_takes_part(
    components: FluxComponents, adapting: FluxRunner, tmp_path: Path
) -> None:
    parts = random_lora(components.text_encoder, 3, 1, 0.5, among=ALL)
    file = save_diffusers(parts, tmp_path / "text.safetensors", prefix="text_encoder.")
    params = make_params(adapters=(Adapter(file.name, 1.0),))
    before = draw(adapting, make_params())
    ours = draw(adapting, params)
    assert distance(ours, oracle(components, params, {file: 1.0})) <= TOLERANCE
    assert distance(ours, before) > 20
    assert distance(draw(adapting, make_params()), before) == 0, "the encoder itself is as it was"


def shapes_with(folder: Path) -> tuple[FluxRunner, FluxComponents, ModelSpec]:
    spec = REGISTRY["flux-shapes"]
    shapes = load(spec, CpuAccelerator(), torch.float32)
    return FluxRunner(shapes, CpuAccelerator(), adapters=AdapterCache(folder, 1 << 30)), shapes, spec


def test_the_embedded_model_draws_what_diffusers_draws(tmp_path: Path) -> None:
    runner, shapes, spec = shapes_with(tmp_path)
    file = save_diffusers(random_lora(shapes.transformer, 16, 1, 0.03), tmp_path / "one.safetensors")
    plain = make_params(model=spec.name, width=192, height=128, num_inference_steps=3)
    params = replace(plain, adapters=(Adapter(file.name, 0.8),))
    ours = draw(runner, params)
    assert distance(ours, oracle(shapes, params, {file: 0.8})) <= TOLERANCE
    assert distance(ours, draw(runner, plain)) > 50


MIX: list[dict[str, object]] = [
    {"adapters": (Adapter("one.safetensors", 0.6),)},
    {"adapters": (), "seed": 2, "width": 64, "height": 64},
    {"adapters": (Adapter("two.safetensors", 1.1),), "seed": 3, "num_inference_steps": 6},
    {"adapters": (Adapter("one.safetensors", 0.6),), "seed": 4, "width": 16, "height": 8},
    {"adapters": (Adapter("one.safetensors", 0.2), Adapter("two.safetensors", 0.9)), "seed": 5},
    {"adapters": (), "seed": 6, "acceleration": "high", "num_inference_steps": 9},
    {"adapters": (Adapter("two.safetensors", 1.1),), "seed": 7, "acceleration": "high", "num_inference_steps": 9},
]


def save_two(components: FluxComponents, folder: Path) -> None:
    save_diffusers(random_lora(components.transformer, 3, 1, among=ALL, but="no layer"), folder / "one.safetensors")
    save_diffusers(random_lora(components.transformer, 6, 2), folder / "two.safetensors")


def test_different_adapters_in_one_pack_draw_what_they_draw_alone(
    components: FluxComponents, adapting: FluxRunner, tmp_path: Path
) -> None:
    save_two(components, tmp_path)
    alone = [draw(adapting, make_params(**changes)) for changes in MIX]
    engine = make_engine(adapting)
    for index, changes in enumerate(MIX):
        submit(engine, f"job{index}", make_params(**changes))
    frames = drain(engine)
    assert engine.steps < sum(int(str(changes.get("num_inference_steps", 4))) for changes in MIX)
    together = [pictures(frames, f"job{index}")[0] for index in range(len(MIX))]
    assert max(distance(a, b) for a, b in zip(alone, together, strict=True)) <= TOLERANCE


def test_rows_without_adapters_are_bit_identical_to_a_runner_without_any(
    components: FluxComponents, adapting: FluxRunner, runner: FluxRunner, tmp_path: Path
) -> None:
    save_two(components, tmp_path)
    draw(adapting, make_params(**MIX[0]))  # from now on the twin exists
    assert np.array_equal(draw(adapting, make_params()), draw(runner, make_params()))


def test_joining_and_cancelling_with_adapters_changes_nothing(
    components: FluxComponents, adapting: FluxRunner, tmp_path: Path
) -> None:
    save_two(components, tmp_path)
    plain, adapted = make_params(num_inference_steps=9, seed=1), make_params(**MIX[2])
    alone = draw(adapting, plain), draw(adapting, adapted)
    engine = make_engine(adapting)
    submit(engine, "plain", plain)

    def between(step: int) -> None:
        if step == 2:
            submit(engine, "adapted", adapted)
            submit(engine, "gone", make_params(**MIX[4]))
        if step == 4:
            engine.abort(Cancel("gone", 1))

    frames = drain(engine, between)
    assert of(frames, "gone", Cancelled)
    assert distance(pictures(frames, "plain")[0], alone[0]) <= TOLERANCE
    assert distance(pictures(frames, "adapted")[0], alone[1]) <= TOLERANCE
