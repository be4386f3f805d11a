"""The engine against diffusers' own Flux2KleinPipeline, and against itself in company."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image

from models.accelerator import CpuAccelerator
from models.registry import TINY_KLEIN
from pipelines.engine.engine import Engine
from pipelines.engine.request import RequestError
from pipelines.families.flux2.prepare import reference
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.protocol.conditions import ImageToImage, InputPicture, Reference
from pipelines.protocol.frames import Cancel, Cancelled, Failed, Finished, Preview
from pipelines.protocol.params import GenerationParams
from tests.pipelines.driving import drain, of, pictures, submit
from tests.pipelines.families.flux2.kleins import engine, klein, params, runner, theirs

TOLERANCE = 1
"""Levels of 255 that company may move a pixel by on a CPU: matrix products over more rows may round differently."""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def give(to: Engine, job: str, wanted: GenerationParams, images: list[Image.Image] = ()) -> None:  # type: ignore[assignment]
    sent = [InputPicture(image.width, image.height, 3, image.tobytes()).to_dict() for image in images]
    submit(to, job, wanted, pictures=sent)


def draw(wanted: GenerationParams, images: list[Image.Image] = (), is_base: bool = False) -> list[np.ndarray]:  # type: ignore[assignment]
    alone = engine(is_base)
    give(alone, "a", wanted, images)
    frames = drain(alone)
    assert of(frames, "a", Finished), frames
    return pictures(frames, "a")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 64, "height": 64, "num_inference_steps": 1},
        {"width": 40, "height": 72, "seed": 2**40, "prompt": "", "guidance_scale": 5.0},
        {"num_inference_steps": 2, "prompt": "x" * 500},
        {"max_sequence_length": 9},
    ],
)
def test_a_lone_request_equals_diffusers_bit_for_bit(changes: dict[str, object]) -> None:
    (ours,) = draw(params(**changes))
    assert np.array_equal(ours, theirs(params(**changes))[0])
    assert np.std(ours) > 20, "a flat picture would prove nothing"


def test_pictures_of_one_request_have_consecutive_seeds() -> None:
    for ours, other in zip(draw(params(num_images=3)), theirs(params(num_images=3)), strict=True):
        assert _distance(ours, other) <= TOLERANCE


def test_an_odd_size_is_the_middle_of_the_next_drawable_one() -> None:
    wanted = params(width=43, height=30)
    (drawn,) = theirs(wanted)
    assert drawn.shape == (32, 48, 3)
    assert np.array_equal(draw(wanted)[0], drawn[1:31, 2:45])


@pytest.mark.parametrize("sizes", [[(64, 64)], [(75, 91), (64, 80)]])
def test_references_are_seen_as_diffusers_sees_them(sizes: list[tuple[int, int]]) -> None:
    images = [picture(*size, seed=index) for index, size in enumerate(sizes)]
    wanted = params(conditions=(Reference(tuple(range(len(images)))),), num_inference_steps=2)
    (ours,) = draw(wanted, images)
    assert np.array_equal(ours, theirs(wanted, images)[0])
    assert _distance(ours, draw(params(num_inference_steps=2))[0]) > 20


@pytest.mark.parametrize("count", [4, 8])
def test_many_references_are_seen_in_their_order(count: int) -> None:
    images = [picture(64 + 8 * index, 96 - 4 * index, seed=index) for index in range(count)]
    wanted = params(conditions=(Reference(tuple(range(count))),), num_inference_steps=2)
    (ours,) = draw(wanted, images)
    assert np.array_equal(ours, theirs(wanted, images)[0])
    # Alone a picture repeats bit for bit; of eight that are looked at each has a small share.
    assert _distance(ours, draw(wanted, images[::-1])[0]) > TOLERANCE, "their order counts"
    assert _distance(ours, draw(wanted, [*images[:-1], picture(64, 64, seed=99)])[0]) > TOLERANCE, "the last counts"


@pytest.mark.parametrize("count", [4, 8])
def test_a_guided_base_model_sees_many_references(count: int) -> None:
    images = [picture(64 + 8 * index, 96 - 4 * index, seed=index) for index in range(count)]
    wanted = params(conditions=(Reference(tuple(range(count))),), num_inference_steps=2, guidance_scale=4.0)
    (ours,) = draw(wanted, images, is_base=True)
    assert _distance(ours, theirs(wanted, images, is_base=True)[0]) <= TOLERANCE


@pytest.mark.parametrize("size", [(64, 64), (75, 91), (1200, 1100), (3000, 1000)])
def test_references_are_made_ready_as_diffusers_does(size: tuple[int, int]) -> None:
    image, processor = picture(*size), Flux2ImageProcessor(vae_scale_factor=16)
    smaller = processor._resize_if_exceeds_area(image)
    width, height = (side // 16 * 16 for side in smaller.size)
    expected = processor.preprocess(smaller, height=height, width=width, resize_mode="crop")
    ours = reference(InputPicture(*size, 3, image.tobytes()), 16)
    assert torch.equal(ours, expected)


def test_a_checkpoint_that_was_trained_so_sees_references_at_the_size_of_the_output() -> None:
    trained_so = replace(klein(), spec=replace(TINY_KLEIN, keeps_reference_size=True))
    sizes = Engine(lambda name: Flux2Runner(trained_so, CpuAccelerator()), CpuAccelerator())
    wanted = params(width=64, height=48, conditions=(Reference((0,)),), num_inference_steps=1)
    large = picture(130, 110)
    give(sizes, "a", wanted, [large])
    (ours,) = pictures(drain(sizes), "a")
    (fitted,) = draw(wanted, [large.resize((64, 48), Image.Resampling.LANCZOS)])
    assert np.array_equal(ours, fitted)
    assert _distance(ours, draw(wanted, [large])[0]) > 5


def test_a_reference_smaller_than_a_cell_is_enlarged() -> None:
    wanted = params(conditions=(Reference((0,)),), num_inference_steps=1)
    assert draw(wanted, [picture(3, 40)])[0].shape == (32, 48, 3)


@pytest.mark.parametrize(("guidance", "negative"), [(4.0, ""), (2.5, "a blue square"), (1.0, "")])
def test_a_base_model_is_guided_as_in_diffusers(guidance: float, negative: str) -> None:
    wanted = params(guidance_scale=guidance, negative_prompt=negative)
    (ours,) = draw(wanted, is_base=True)
    # Two rows of one step may round otherwise than two steps of one row.
    assert _distance(ours, theirs(wanted, is_base=True)[0]) <= TOLERANCE


def test_guidance_and_negative_prompt_change_what_a_base_model_draws() -> None:
    plain, guided = draw(params(), is_base=True), draw(params(guidance_scale=3.0), is_base=True)
    negative = draw(params(guidance_scale=3.0, negative_prompt="a blue square"), is_base=True)
    assert _distance(plain[0], guided[0]) > 20
    assert _distance(negative[0], guided[0]) > 20


STRANGERS: list[tuple[dict[str, object], list[tuple[int, int]]]] = [
    ({"width": 64, "height": 64, "num_inference_steps": 6, "seed": 1, "prompt": "blue", "guidance_scale": 3.0}, []),
    ({"width": 16, "height": 8, "num_inference_steps": 2, "seed": 2}, [(64, 64)]),
    ({"num_inference_steps": 5, "seed": 3, "max_sequence_length": 9, "guidance_scale": 7.0}, [(64, 80), (75, 66)]),
    ({"width": 8, "height": 8, "num_inference_steps": 9, "seed": 5, "num_images": 2}, []),
]


@pytest.mark.parametrize("is_base", [False, True])
def test_neighbours_of_any_kind_do_not_change_a_picture(is_base: bool) -> None:
    wanted, image = params(guidance_scale=4.0, conditions=(Reference((0,)),)), picture(70, 80)
    alone = draw(wanted, [image], is_base)[0]
    busy = engine(is_base)
    for index, (changes, sizes) in enumerate(STRANGERS):
        conditions = (Reference(tuple(range(len(sizes)))),) if sizes else ()
        give(busy, f"s{index}", params(**changes, conditions=conditions), [picture(*size) for size in sizes])

    def meddle(step: int) -> None:
        if step == 3:
            give(busy, "a", wanted, [image])
        if step == 6:
            busy.abort(Cancel("s0", 1))

    frames = drain(busy, meddle)
    assert of(frames, "s0", Cancelled)
    assert _distance(pictures(frames, "a")[0], alone) <= TOLERANCE


def test_a_preview_comes_near_the_picture() -> None:
    seen = engine()
    give(seen, "a", params(width=128, height=96, preview_every=1))
    frames = drain(seen)
    shown = [frame for frame in frames if isinstance(frame, Preview)]
    assert shown
    assert (shown[-1].width, shown[-1].height) == (16, 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conditions": (ImageToImage(0, 0.5),)}, "cannot do image to image"),
        ({"width": 4096, "height": 4096}, "more than"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        runner().limits.check(params(**changes))


def test_a_request_that_cannot_be_done_fails_alone() -> None:
    busy = engine()
    give(busy, "a", params())
    give(busy, "bad", params(width=4096, height=4096))
    frames = drain(busy)
    assert of(frames, "bad", Failed)
    assert of(frames, "a", Finished)


def test_the_tokens_of_a_step_are_predicted_as_they_come() -> None:
    limits, conditions = runner(is_base=True).limits, (Reference((0,)),)
    assert limits.tokens(params()) == 6 * 4 + 24
    assert limits.tokens(params(guidance_scale=2.0, conditions=conditions)) == 2 * (2 * 6 * 4 + 24)


def _distance(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())
