"""The engine against diffusers' own SDXL pipelines, and against itself in company."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load
from models.sdxl.components import SdxlComponents
from pipelines.engine.engine import Engine
from pipelines.engine.request import RequestError, Row, latents_of
from pipelines.families.sdxl import runner as sdxl_runner
from pipelines.families.sdxl.runner import SdxlRunner
from pipelines.protocol.conditions import Adapter, ImageToImage, Inpaint, Redux
from pipelines.protocol.frames import Cancel, Cancelled, Failed, Finished, Preview
from tests.models.sdxl.folders import save_sdxl
from tests.pipelines.driving import drain, of, pictures
from tests.pipelines.families.sdxl.small import (
    components,
    distance,
    draw,
    engine,
    give,
    mask,
    params,
    picture,
    runner,
    theirs,
)

TOLERANCE = 1
"""Levels of 255 that company may move a pixel by on a CPU: convolutions over more rows may round differently."""
# diffusers' Euler scheduler makes a numpy array of a tensor in a way that numpy 2 will change.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
VARIANTS = ("sdxl", "lightning", "playground")
SCHEDULES = (*VARIANTS, "one-step", "edm-euler")


@pytest.mark.parametrize("variant", SCHEDULES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_inference_steps": 1}, {"width": 40, "height": 56, "seed": 2**40, "prompt": ""}, {"prompt": "x" * 300}],
)
def test_a_lone_request_equals_diffusers_bit_for_bit(variant: str, changes: dict[str, object]) -> None:
    wanted = params(variant, **changes)
    (ours,) = draw(variant, wanted)
    assert np.array_equal(ours, theirs(variant, wanted))
    assert np.std(ours) > 20, "a flat picture would prove nothing"


@pytest.mark.parametrize("steps", [2, 8, 20])
@pytest.mark.parametrize("variant", ["lightning", "playground"])
def test_schedules_of_any_length_equal_diffusers(variant: str, steps: int) -> None:
    wanted = params(variant, num_inference_steps=steps)
    assert np.array_equal(draw(variant, wanted)[0], theirs(variant, wanted))


@pytest.mark.parametrize("changes", [{}, {"width": 40, "height": 56, "seed": 2**40, "prompt": ""}])
def test_lightning_in_one_step_equals_diffusers_that_expects_a_sample(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    """From a file with the published name; the schedule is set as the page of its authors does, not read from ours."""
    folder, file = save_sdxl(tmp_path / "sdxl"), tmp_path / "sdxl_lightning_1step_unet_x0.safetensors"
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({name: 0.9 * tensor for name, tensor in stored.items()}, file)
    loaded: SdxlComponents = load(resolve(f"{folder}+{file}"), CpuAccelerator())
    alone = SdxlRunner(loaded, CpuAccelerator())
    wanted = params("lightning", num_inference_steps=1, guidance_scale=0.0, **changes)
    busy = Engine(lambda name: alone, CpuAccelerator())
    give(busy, "a", wanted)
    (ours,) = pictures(drain(busy), "a")

    stock = loaded.pipeline()  # the same modules: where a weight begins in memory moves the last bit
    stock.scheduler = EulerDiscreteScheduler.from_pretrained(
        folder, subfolder="scheduler", timestep_spacing="trailing", prediction_type="sample"
    )
    with torch.inference_mode():
        (expected,) = stock(
            wanted.prompt,
            height=wanted.height,
            width=wanted.width,
            num_inference_steps=1,
            guidance_scale=0.0,
            generator=torch.Generator().manual_seed(wanted.seed),
        ).images
    assert np.array_equal(ours, np.asarray(expected))
    assert np.std(ours) > 20, "a flat picture would prove nothing"


def test_a_negative_prompt_leads_away_as_in_diffusers() -> None:
    wanted = params("playground", negative_prompt="a blue square", guidance_scale=7.0)
    (ours,) = draw("playground", wanted)
    assert np.array_equal(ours, theirs("playground", wanted))
    assert distance(ours, draw("playground", params("playground", guidance_scale=7.0))[0]) > 5


def test_an_odd_size_is_the_middle_of_the_next_drawable_one() -> None:
    wanted = params("sdxl", width=43, height=30)
    drawn = theirs("sdxl", wanted)
    assert drawn.shape == (32, 48, 3)
    assert np.array_equal(draw("sdxl", wanted)[0], drawn[1:31, 2:45])


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("variant", SCHEDULES)
def test_a_picture_is_reworked_as_in_diffusers(variant: str, strength: float) -> None:
    condition = ImageToImage(0, strength, rounds_down=True)
    wanted = params(variant, conditions=(condition,), num_inference_steps=6)
    images = (picture(48, 32),)
    assert np.array_equal(draw(variant, wanted, images)[0], theirs(variant, wanted, images))


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("variant", ["sdxl", "lightning", "one-step"])
def test_what_a_mask_covers_is_drawn_as_in_diffusers_and_the_rest_comes_back(variant: str, strength: float) -> None:
    wanted = params(variant, conditions=(Inpaint(0, 1, strength, rounds_down=True),), num_inference_steps=5)
    images = picture(48, 32), mask(48, 32, (8, 8, 32, 24))
    (ours,), drawn = draw(variant, wanted, images), theirs(variant, wanted, images)
    is_drawn = np.asarray(images[1]) > 0
    assert np.array_equal(ours[is_drawn], drawn[is_drawn])
    assert np.array_equal(ours[~is_drawn], np.asarray(images[0])[~is_drawn])


def test_playgrounds_mask_keeps_to_the_latents_that_its_decoder_expects() -> None:
    images = picture(48, 32), mask(48, 32, (0, 0, 48, 32))
    wanted = params("playground", conditions=(Inpaint(0, 1, 1.0, rounds_down=True),))
    (ours,) = draw("playground", wanted, images)
    assert distance(ours, theirs("playground", wanted, images)) == 0, "all is drawn: only the noise counts"


STRANGERS: list[dict[str, object]] = [
    {"num_inference_steps": 6, "seed": 1, "prompt": "blue", "guidance_scale": 2.0, "negative_prompt": "red"},
    {"num_inference_steps": 2, "seed": 2, "guidance_scale": 0.0},
    {"width": 64, "height": 64, "num_inference_steps": 3, "seed": 3},
    {"num_inference_steps": 9, "seed": 5, "num_images": 2},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_neighbours_that_join_and_leave_do_not_change_a_picture(variant: str) -> None:
    wanted = params(variant, num_inference_steps=7)
    alone, busy = draw(variant, wanted)[0], engine(variant)
    give(busy, "a", wanted)

    def arrive(step: int) -> None:
        if step < len(STRANGERS):
            give(busy, f"s{step}", params(variant, **STRANGERS[step]))
        if step == 5:
            busy.abort(Cancel("s3", 1))

    frames = drain(busy, between=arrive)
    assert distance(pictures(frames, "a")[0], alone) <= TOLERANCE
    assert of(frames, "s3", Cancelled)
    for index in (0, 1, 2):
        assert distance(pictures(frames, f"s{index}")[0], draw(variant, params(variant, **STRANGERS[index]))[0]) <= 1


REWORK = {"conditions": (ImageToImage(0, 0.6, rounds_down=True),)}
MASK = {"conditions": (Inpaint(0, 1, 0.7, rounds_down=True),)}
WHOLE_MASK = {"conditions": (Inpaint(0, 1, 1.0, rounds_down=True),)}
CROWD: dict[str, tuple[int, dict[str, object]]] = {
    "text": (0, {"num_inference_steps": 9, "seed": 11}),
    "rework": (0, REWORK | {"num_inference_steps": 12, "seed": 12, "guidance_scale": 3.0}),
    "mask": (1, MASK | {"num_inference_steps": 9, "seed": 13, "guidance_scale": 0.0}),
    "gone mask": (1, MASK | {"num_inference_steps": 20, "seed": 14, "num_images": 2}),
    "whole mask": (2, WHOLE_MASK | {"num_inference_steps": 6, "seed": 15, "num_images": 2, "preview_every": 2}),
    "gone rework": (2, REWORK | {"num_inference_steps": 20, "seed": 16, "guidance_scale": 2.0}),
    "late text": (4, {"num_inference_steps": 4, "seed": 17, "guidance_scale": 2.0, "negative_prompt": "red"}),
    "late rework": (5, REWORK | {"num_inference_steps": 2, "seed": 18, "prompt": "blue"}),
    "late mask": (6, MASK | {"num_inference_steps": 5, "seed": 19, "guidance_scale": 2.0, "negative_prompt": "red"}),
}
"""By name: the step before which it comes, and what it asks for."""


@pytest.mark.parametrize("variant", SCHEDULES)
def test_text_pictures_and_masks_share_steps_and_stay_what_they_are_alone(variant: str) -> None:
    kept = Kept(runner(variant))
    ticks = count(0.0, 0.001)  # who shares a step depends on how long steps take, and so on what else the machine does
    busy = Engine(lambda name: kept, CpuAccelerator(), clock=lambda: next(ticks))  # type: ignore[arg-type, return-value]

    def arrive(step: int) -> None:
        for name, (when, changes) in CROWD.items():
            if when == step:
                give(busy, name, params(variant, **changes), given(changes))
        if step == 6:
            busy.abort(Cancel("gone mask", 1))
            busy.abort(Cancel("gone rework", 1))

    frames = drain(busy, between=arrive)
    gone = {name for name in CROWD if of(frames, name, Cancelled)}
    assert gone == {"gone mask", "gone rework"}
    assert any(step >= {"text", "rework", "mask", *gone} for step in kept.steps), "all kinds in one forward"
    assert any(step >= {"late rework"} and len(step) > 2 for step in kept.steps)
    for name in CROWD.keys() - gone:
        changes = CROWD[name][1]
        wanted, alone = params(variant, **changes), Kept(runner(variant))
        lone = Engine(lambda name, alone=alone: alone, CpuAccelerator())
        give(lone, name, wanted, given(changes))
        expected = pictures(drain(lone), name)
        for index, picture_ in enumerate(pictures(frames, name)):
            one, other = kept.latents[name, index], alone.latents[name, index]
            assert float((one - other).abs().max()) <= 1e-5 * max(float(other.abs().max()), 1.0), (name, index)
            assert distance(picture_, expected[index]) <= TOLERANCE
        assert len(expected) == wanted.num_images


def given(changes: dict[str, object]) -> tuple[Image.Image, ...]:
    """The pictures that a request brings, others for each."""
    images = picture(48, 32, seed=int(str(changes["seed"]))), mask(48, 32, (8, 8, 32, 24))
    return images if "conditions" in changes else ()


class Kept:
    """A runner that remembers who shared a step, and latents as numbers before a picture rounds them."""

    def __init__(self, drawing: SdxlRunner) -> None:
        self._drawing = drawing
        self.steps: list[set[str]] = []
        self.latents: dict[tuple[str, int], torch.Tensor] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._drawing, name)

    def denoise(self, rows: list[Row]) -> None:
        self.steps.append({row.request.job_id for row in rows})
        self._drawing.denoise(rows)

    def decode(self, row: Row) -> object:
        self.latents[row.request.job_id, row.index] = latents_of(row).clone()
        return self._drawing.decode(row)


def test_latents_of_a_pack_equal_those_of_rows_alone() -> None:
    """As numbers, before a picture rounds them."""
    for variant in VARIANTS:
        steps = 4
        wanted = [
            params(variant, seed=seed, num_inference_steps=steps, guidance_scale=g) for seed, g in ((1, 3.0), (2, 0.0))
        ]
        together, apart = latents(variant, wanted), [latents(variant, [each])[0] for each in wanted]
        for one, other in zip(together, apart, strict=True):
            scale = float(np.abs(other).max())
            assert float(np.abs(one - other).max()) <= 1e-5 * max(scale, 1.0)


def latents(variant: str, wanted: list) -> list[np.ndarray]:  # type: ignore[type-arg]
    """What requests that start together have before they are decoded."""
    from pipelines.engine.request import Request

    drawing, rows = runner(variant), []
    for index, each in enumerate(wanted):
        request = Request(str(index), 1, each, "g", 1, 0.0)
        admission = drawing.admit(request)
        admission.wait()
        admitted = admission.result()
        request.conditioning = admitted.conditioning
        (request.rows[0].latents,), (request.rows[0].state,) = admitted.latents, admitted.states
        rows += request.rows
    for _ in range(wanted[0].num_inference_steps):
        drawing.denoise(rows)
        for row in rows:
            row.steps_left -= 1
    return [row.latents.numpy() for row in rows]


def test_other_sizes_take_turns() -> None:
    busy, seen = engine("sdxl"), []
    drawing = runner("sdxl")

    class Spy:
        def __getattr__(self, name: str) -> object:
            return getattr(drawing, name)

        def denoise(self, rows: list) -> None:  # type: ignore[type-arg]
            seen.append([(row.request.params.width, row.request.params.height) for row in rows])
            drawing.denoise(rows)

    busy._runner_for = lambda name: Spy()  # type: ignore[assignment, return-value]
    for job, size in enumerate([(48, 32), (64, 32), (48, 32), (45, 31)]):
        give(busy, str(job), params("sdxl", width=size[0], height=size[1], num_inference_steps=3))
    frames = drain(busy)
    assert all(of(frames, str(job), Finished) for job in range(4))
    cells = [{(-(-width // 8), -(-height // 8)) for width, height in sizes} for sizes in seen]
    assert all(len(each) == 1 for each in cells)
    assert max(map(len, seen)) > 1, "equal sizes share a step"


def test_a_step_that_failed_in_its_middle_may_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, busy, calls = params("playground", num_inference_steps=5), engine("playground"), count(1)
    real = sdxl_runner.advanced

    def advanced(*arguments: Any) -> Any:
        if next(calls) == 4:  # the second row of a shared step, when the first has moved on
            raise RuntimeError("a passing fault")
        return real(*arguments)

    monkeypatch.setattr(sdxl_runner, "advanced", advanced)
    give(busy, "a", wanted)
    give(busy, "b", params("playground", num_inference_steps=5, seed=9))
    drawn = drain(busy)
    assert next(calls) > 10
    assert distance(pictures(drawn, "a")[0], draw("playground", wanted)[0]) <= TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_previews_come_nearer_to_the_picture(variant: str) -> None:
    busy = engine(variant)
    give(busy, "a", params(variant, preview_every=2, num_inference_steps=6))
    previews = of(drain(busy), "a", Preview)
    assert [preview.step for preview in previews] == [2, 4]  # type: ignore[attr-defined]
    assert (previews[0].width, previews[0].height) == (6, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conditions": (Redux((0,), "x"),)}, "redux"),
        ({"conditions": (Inpaint(0, 1, 0.5, is_differential=True),)}, "inpaint"),
        ({"adapters": (Adapter("a.safetensors"),)}, "LoRAs"),
        ({"width": 4096, "height": 4096}, "more than"),
    ],
)
def test_what_it_cannot_do_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        runner("sdxl").limits.check(params("sdxl", **changes))
    busy = engine("sdxl")
    give(busy, "a", params("sdxl", **changes), (picture(48, 32), mask(48, 32, (0, 0, 8, 8))))
    assert of(drain(busy), "a", Failed)


def test_parts_say_where_they_are() -> None:
    loaded = components("sdxl")
    assert loaded.device == CpuAccelerator().device
    assert not loaded.guidance_embeds
    assert loaded.core is loaded.unet
