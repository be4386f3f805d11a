"""LoRAs on requests with pictures: every kind against diffusers' pipeline with the adapter loaded, and in one pack."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FluxFillPipeline, FluxImg2ImgPipeline, FluxKontextPipeline
from safetensors.torch import load_file

from models.accelerator import CpuAccelerator
from models.components import FluxComponents
from pipelines.adapters.cache import AdapterCache
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import Adapter, Fill, ImageToImage, Reference
from pipelines.protocol.params import GenerationParams
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.driving import drain, make_engine, make_params, pictures
from tests.pipelines.families.flux1.families import ask, image, mask, ours, picture, theirs, variant_of

TOLERANCE = 1
PICTURE, MASK = picture(48, 32), mask(48, 32, (16, 8, 32, 24))
USED = (Adapter("one.safetensors", 0.7),)


def with_peft(components: FluxComponents, file: Path, scale: float) -> FluxComponents:
    """A copy of the checkpoint that carries the adapter as diffusers does."""
    transformer = copy.deepcopy(components.transformer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer.load_lora_adapter(load_file(file), adapter_name="one")
    transformer.set_adapters(["one"], [scale])
    return replace(components, transformer=transformer)


KINDS: dict[str, tuple[Any, GenerationParams, dict[str, object]]] = {
    "image-to-image": (
        FluxImg2ImgPipeline,
        make_params(num_inference_steps=6, conditions=(ImageToImage(0, 0.7),)),
        {"image": image(PICTURE), "strength": 0.7},
    ),
    "fill": (
        FluxFillPipeline,
        make_params(conditions=(Fill(0, 1),)),
        {"image": image(PICTURE), "mask_image": image(MASK)},
    ),
    "kontext": (
        FluxKontextPipeline,
        make_params(conditions=(Reference((0,)),)),
        {"image": image(PICTURE), "_auto_resize": False, "max_area": 48 * 32},
    ),
}


def prepared(components: FluxComponents, folder: Path, kind: str) -> tuple[FluxComponents, FluxRunner]:
    """The checkpoint of a kind, its runner, and a LoRA over every linear of it in `folder`."""
    checkpoint = {
        "image-to-image": lambda: components,
        "fill": lambda: variant_of(components, "fill", 16 + 4 * 4 * 4),
        "kontext": lambda: variant_of(components, "kontext"),
    }[kind]()
    parts = random_lora(checkpoint.transformer, 3, 1, among=("",), but="no layer")
    save_diffusers(parts, folder / "one.safetensors")
    return checkpoint, FluxRunner(checkpoint, CpuAccelerator(), adapters=AdapterCache(folder, 1 << 30))


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_with_a_picture_and_an_adapter_draws_what_diffusers_draws(
    components: FluxComponents, tmp_path: Path, kind: str
) -> None:
    checkpoint, runner = prepared(components, tmp_path, kind)
    pipeline, plain, call = KINDS[kind]
    expected = theirs(pipeline, with_peft(checkpoint, tmp_path / "one.safetensors", 0.7), plain, **call)
    drawn = ours(runner, replace(plain, adapters=USED), [PICTURE, MASK])
    shown = np.asarray(image(MASK)) > 0 if kind == "fill" else np.ones((32, 48), bool)  # outside: as it came
    assert distance(drawn[shown], expected[shown]) <= TOLERANCE
    assert distance(drawn, ours(runner, plain, [PICTURE, MASK])) > 20, "the adapter must show"


def test_pictures_and_adapters_share_steps_without_touching_each_other(
    components: FluxComponents, tmp_path: Path
) -> None:
    _, runner = prepared(components, tmp_path, "image-to-image")
    asked = [
        make_params(adapters=USED),
        make_params(num_inference_steps=6, conditions=(ImageToImage(0, 0.7),), adapters=USED, seed=2),
        make_params(num_inference_steps=5, conditions=(ImageToImage(0, 0.5),), seed=3),
        make_params(seed=4),
    ]
    alone = [ours(runner, params, [PICTURE]) for params in asked]
    engine = make_engine(runner)
    for index, params in enumerate(asked):
        ask(engine, str(index), params, [PICTURE])
    frames = drain(engine)
    together = [pictures(frames, str(index))[0] for index in range(len(asked))]
    assert max(distance(a, b) for a, b in zip(alone, together, strict=True)) <= TOLERANCE


def distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())
