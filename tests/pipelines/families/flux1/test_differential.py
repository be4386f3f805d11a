"""Differential diffusion: where a map is grey g, the picture is held for the first (1 - g) of the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from models.components import FluxComponents
from pipelines.engine.request import Request
from pipelines.families.flux1.conditioning import state_of
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux1.sampling import unpack_latents
from pipelines.protocol.conditions import ImageToImage, Inpaint, InputPicture
from tests.pipelines.driving import make_params
from tests.pipelines.families.flux1.families import image, ours, picture, theirs

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

PICTURE = picture(48, 32)
GREYS = (0, 1, 40, 64, 100, 127, 128, 180, 191, 220, 254, 255)
STEPS, STRENGTH = 12, 0.7
KEPT = 9
"""Of 12 steps at a strength of 0.7: 8.4, and a step that is begun is drawn."""


def striped(*greys: int) -> InputPicture:
    """A map of the picture's size in upright stripes; 12 of them are a cell of the latents wide each."""
    shades = np.repeat(np.array(greys, np.uint8), 48 // len(greys))
    return InputPicture(48, 32, 1, np.tile(shades, (32, 1)).tobytes())


def mapped() -> Any:
    conditions = (Inpaint(0, 1, STRENGTH, is_differential=True),)
    return make_params(num_inference_steps=STEPS, conditions=conditions)


def differential(shades: InputPicture, seed: int) -> Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]:
    """What turns diffusers' image-to-image into differential diffusion: after every step the picture is put back,
    at the new noise level, wherever the steps so far are fewer than its share. It shares no code with the engine.
    """

    def put_back(pipeline: Any, step: int, _: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pixels = pipeline.image_processor.preprocess(image(PICTURE), height=32, width=48)
        clean = pipeline._encode_vae_image(pixels, generator)
        noise = randn_tensor(clean.shape, generator)
        level = pipeline.scheduler.sigmas[pipeline.scheduler.step_index]
        grey = np.asarray(image(shades), np.float32).reshape(clean.shape[2], -1, clean.shape[3], 48 // clean.shape[3])
        share = torch.from_numpy(grey.mean((1, 3)) / 255).expand_as(clean)
        held, noisy = (
            pipeline._pack_latents(each, *clean.shape)
            for each in (step < (1 - share) * pipeline.num_timesteps, level * noise + (1 - level) * clean)
        )
        return {"latents": torch.where(held, noisy, values["latents"])}

    return put_back


@pytest.mark.parametrize("greys", [GREYS, (255, 0), (128,), (30, 230)], ids=str)
def test_it_is_image_to_image_that_puts_the_picture_back(
    components: FluxComponents, runner: FluxRunner, greys: tuple[int, ...]
) -> None:
    shades, params = striped(*greys), mapped()
    call = {"image": image(PICTURE), "strength": STRENGTH, "callback_on_step_end": differential(shades, params.seed)}
    expected = theirs(FluxImg2ImgPipeline, components, params, **call)
    drawn = ours(runner, params, [PICTURE, shades])
    changes = np.asarray(image(shades)) > 0
    assert np.array_equal(drawn[changes], expected[changes])
    assert np.array_equal(drawn[~changes], np.asarray(image(PICTURE))[~changes]), "black comes back untouched"


def test_all_white_is_image_to_image_and_all_black_the_picture(runner: FluxRunner) -> None:
    plain = make_params(num_inference_steps=STEPS, conditions=(ImageToImage(0, STRENGTH),))
    assert np.array_equal(ours(runner, mapped(), [PICTURE, striped(255)]), ours(runner, plain, [PICTURE]))
    assert np.array_equal(ours(runner, mapped(), [PICTURE, striped(0)]), np.asarray(image(PICTURE)))


def test_every_grey_is_held_until_its_step_and_then_let_go(runner: FluxRunner) -> None:
    params = mapped()
    request = Request("a", 1, params, "group", runner.limits.tokens(params), 0.0, pictures=(PICTURE, striped(*GREYS)))
    admission = runner.admit(request).result()
    request.conditioning = admission.conditioning
    (row,) = request.rows
    row.latents, row.state = admission.latents[0], admission.states[0]
    (phase,) = admission.conditioning.phases
    clean, noise = state_of(row).clean, state_of(row).noise
    assert clean is not None
    assert noise is not None
    freed: dict[int, int] = {}
    for step, level in enumerate(phase.sigmas[1:]):
        runner.denoise([row])
        row.steps_left -= 1
        assert row.latents is not None
        away = unpack_latents((row.latents - (level * noise + (1 - level) * clean))[None], 8, 12)[0].abs().amax((0, 1))
        for column, grey in enumerate(GREYS):
            if away[column] < 1e-5:
                assert grey not in freed, "what was let go is held again"
            else:
                freed.setdefault(grey, step)
    assert len(phase.sigmas) - 1 == KEPT
    lets_go = {grey: -(-(255 - grey) * KEPT // 255) for grey in GREYS}
    assert freed == {grey: step for grey, step in lets_go.items() if step < KEPT}
