"""FLUX.2 [dev]: Mistral's words and guidance as an input, against diffusers' own Flux2Pipeline."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from models.accelerator import CpuAccelerator
from models.flux2.components import Flux2Components
from models.loading import load
from models.registry import TINY_FLUX2_DEV
from pipelines.engine.engine import Engine
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.protocol.conditions import InputPicture, Reference
from pipelines.protocol.frames import Finished
from pipelines.protocol.params import GenerationParams
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import drain, make_params, of, pictures, submit


@cache
def runner() -> Flux2Runner:
    loaded: Flux2Components = load(TINY_FLUX2_DEV, CpuAccelerator())
    for part in ("transformer", "vae", "text_encoder"):
        amplify(loaded.modules[part], 0.2)
    generator = torch.Generator().manual_seed(1)
    loaded.vae.bn.running_mean.normal_(0.0, 0.5, generator=generator)
    loaded.vae.bn.running_var.uniform_(0.3, 2.0, generator=generator)
    return Flux2Runner(loaded, CpuAccelerator())


def params(**changes: object) -> GenerationParams:
    base = {"model": TINY_FLUX2_DEV.name, "guidance_scale": 2.5, "max_sequence_length": 300}
    return make_params(**(base | changes))


def engine() -> Engine:
    return Engine(lambda name: runner(), CpuAccelerator())


def draw(wanted: GenerationParams, images: tuple[Image.Image, ...] = ()) -> NDArray[np.uint8]:
    return draw_by(runner(), wanted, images)


def draw_by(runner: Flux2Runner, wanted: GenerationParams, images: tuple[Image.Image, ...] = ()) -> NDArray[np.uint8]:
    alone = Engine(lambda name: runner, CpuAccelerator())
    sent = [InputPicture(*image.size, 3, image.tobytes()).to_dict() for image in images]
    submit(alone, "a", wanted, pictures=sent)
    frames = drain(alone)
    assert of(frames, "a", Finished), frames
    return pictures(frames, "a")[0]


@torch.inference_mode()
def theirs(wanted: GenerationParams, images: tuple[Image.Image, ...] = ()) -> NDArray[np.uint8]:
    drawn = runner().components.pipeline()(
        image=list(images) or None,
        prompt=wanted.prompt,
        height=wanted.height,
        width=wanted.width,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        max_sequence_length=runner().limits.text_tokens(wanted),
        generator=torch.Generator().manual_seed(wanted.seed),
    )
    return np.asarray(drawn.images[0])


@pytest.mark.parametrize(
    "changes",
    [{}, {"guidance_scale": 6.0}, {"num_inference_steps": 1, "prompt": ""}, {"width": 64, "prompt": "[IMG] a" * 90}],
)
def test_a_lone_request_equals_diffusers_bit_for_bit(changes: dict[str, object]) -> None:
    wanted = params(**changes)
    ours = draw(wanted)
    assert np.array_equal(ours, theirs(wanted))
    assert np.std(ours) > 20, "a flat picture would prove nothing"


def test_prompt_and_guidance_count() -> None:
    plain = draw(params(prompt="red"))
    assert not np.array_equal(plain, draw(params(prompt="blue")))
    assert not np.array_equal(plain, draw(params(prompt="red", guidance_scale=8.0)))


@pytest.mark.parametrize(
    "sizes", [[(64, 64)], [(75, 91), (1200, 1100)], *([(64 + 8 * i, 96 - 4 * i) for i in range(n)] for n in (4, 8))]
)
def test_references_are_seen_as_diffusers_sees_them(sizes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(0)
    images = tuple(Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes)
    wanted = params(conditions=(Reference(tuple(range(len(images)))),), num_inference_steps=2)
    if max(map(max, sizes)) > 1024:
        wanted = params(conditions=wanted.conditions, num_inference_steps=1, width=16, height=16)
    assert np.array_equal(draw(wanted, images), theirs(wanted, images))


def test_neighbours_do_not_change_a_picture() -> None:
    wanted, busy = params(num_inference_steps=5), engine()
    submit(busy, "a", wanted)
    submit(busy, "b", params(width=64, height=64, seed=3, guidance_scale=7.0, num_inference_steps=2))
    together = pictures(drain(busy), "a")[0]
    assert np.abs(together.astype(int) - draw(wanted).astype(int)).max() <= 1


def test_nothing_after_the_last_layer_is_held_or_asked_twice() -> None:
    components = runner().components
    assert len(components.text_encoder.layers) == 30  # type: ignore[arg-type]
    assert not runner().limits.is_guided(params(guidance_scale=9.0))
