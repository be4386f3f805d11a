"""The arithmetic around the transformer against diffusers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from hypothesis import given, settings
from hypothesis import strategies as st

from models.architectures import FLUX_SIGMAS
from pipelines.families.flow import euler_step
from pipelines.families.flux1.sampling import (
    flow_match_sigmas,
    initial_noise,
    pack_latents,
    position_ids,
    unpack_latents,
)
from pipelines.pictures.decoding import crop_centred, to_pixels

SCHNELL = FLUX_SIGMAS | {"shift": 1.0, "use_dynamic_shifting": False}


@pytest.mark.parametrize("config", [FLUX_SIGMAS, SCHNELL, FLUX_SIGMAS | {"shift_terminal": 0.1}])
@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 60), tokens=st.integers(1, 20_000))
def test_sigmas_are_those_of_the_pipeline(config: dict, steps: int, tokens: int) -> None:
    if config.get("shift_terminal") and steps == 1:
        return  # the stretch of a single level divides zero by zero in diffusers too
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    retrieve_timesteps(scheduler, steps, "cpu", sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    ours = flow_match_sigmas(config, steps, tokens)
    assert torch.equal(ours, scheduler.sigmas)
    assert ours.dtype == torch.float32
    assert ours[-1] == 0
    assert bool((ours[:-1] > ours[1:]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_that_of_the_pipeline(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    expected = torch.randn((1, 4, 6, 8), generator=generator, dtype=dtype)
    packed = FluxPipeline._pack_latents(expected, 1, 4, 6, 8)
    assert torch.equal(initial_noise(torch.Generator().manual_seed(5), 4, 6, 8, dtype), packed[0])


@given(height=st.integers(1, 6), width=st.integers(1, 6))
def test_unpacking_inverts_packing_and_equals_the_pipeline(height: int, width: int) -> None:
    latents = torch.randn(2, 4, 2 * height, 2 * width)
    packed = pack_latents(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 4, 2 * height, 2 * width))
    assert torch.equal(unpack_latents(packed, 2 * height, 2 * width), latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_position_ids_are_those_of_the_pipeline(dtype: torch.dtype) -> None:
    ids = position_ids(3, 300, 2, dtype)
    assert torch.equal(ids[:3], torch.zeros(3, 3, dtype=dtype))
    assert torch.equal(ids[3:], FluxPipeline._prepare_latent_image_ids(1, 300, 2, "cpu", dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_euler_step_is_that_of_the_scheduler(dtype: torch.dtype) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(FLUX_SIGMAS)
    scheduler.set_timesteps(9, mu=0.8)
    scheduler.set_begin_index(0)
    latents = torch.randn(1, 40, 16).to(dtype)
    ours = latents[0]
    for index, timestep in enumerate(scheduler.timesteps):
        noise_pred = torch.randn(1, 40, 16).to(dtype)
        latents = scheduler.step(noise_pred, timestep, latents, return_dict=False)[0]
        step = (scheduler.sigmas[index + 1] - scheduler.sigmas[index]).to(dtype)
        ours = euler_step(ours, noise_pred[0], step[None, None])
        assert torch.equal(ours, latents[0])


def test_rows_of_one_euler_step_may_differ() -> None:
    latents, noise_pred = torch.randn(2, 3), torch.randn(2, 3)
    steps = torch.tensor([[-0.5], [-0.125]])
    expected = torch.stack([latents[0] - 0.5 * noise_pred[0], latents[1] - 0.125 * noise_pred[1]])
    assert torch.equal(euler_step(latents, noise_pred, steps), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_are_those_of_the_image_processor(dtype: torch.dtype) -> None:
    image = (torch.randn(1, 3, 20, 30) * 1.5).to(dtype)
    expected = VaeImageProcessor().postprocess(image, output_type="pil")[0]
    assert np.array_equal(to_pixels(image[0]).numpy(), np.asarray(expected))


def test_a_crop_takes_the_middle() -> None:
    pixels = torch.arange(5 * 7 * 3, dtype=torch.uint8).reshape(5, 7, 3)
    assert torch.equal(crop_centred(pixels, 2, 3), pixels[1:3, 2:5])
    assert torch.equal(crop_centred(pixels, 5, 7), pixels)
