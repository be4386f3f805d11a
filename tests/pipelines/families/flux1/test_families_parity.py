"""Every family alone in float32 against diffusers' own pipeline, bit for bit unless a tolerance is stated."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
)

from models.components import FluxComponents
from pipelines.families.flux1.runner import FluxRunner
from pipelines.pictures.canny import edges
from pipelines.protocol.conditions import Control, Fill, ImageToImage, Inpaint, Reference
from tests.pipelines.driving import make_params
from tests.pipelines.families.flux1.families import image, mask, ours, picture, run_on, theirs, variant_of

PICTURE = picture(48, 32)
MASK = mask(48, 32, (16, 8, 32, 24))
"""Aligned with the cells of 4 x 4 pixels, so that any way to reduce it to cells gives the same."""


@pytest.mark.parametrize("strength", [1.0, 0.7, 0.5, 0.1])
def test_image_to_image(components: FluxComponents, runner: FluxRunner, strength: float) -> None:
    params = make_params(num_inference_steps=6, conditions=(ImageToImage(0, strength),))
    drawn = ours(runner, params, [PICTURE])
    expected = theirs(FluxImg2ImgPipeline, components, params, image=image(PICTURE), strength=strength)
    assert np.array_equal(drawn, expected)
    assert np.std(drawn) > 20, "a flat picture would prove nothing"


def test_a_picture_of_another_size_is_resized_as_diffusers_does(components: FluxComponents, runner: FluxRunner) -> None:
    given = picture(71, 90, seed=4)
    params = make_params(conditions=(ImageToImage(0, 0.75),))
    expected = theirs(FluxImg2ImgPipeline, components, params, image=image(given), strength=0.75)
    assert np.array_equal(ours(runner, params, [given]), expected)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting(components: FluxComponents, runner: FluxRunner, strength: float) -> None:
    params = make_params(num_inference_steps=6, conditions=(Inpaint(0, 1, strength),))
    drawn = ours(runner, params, [PICTURE, MASK])
    expected = theirs(
        FluxInpaintPipeline, components, params, image=image(PICTURE), mask_image=image(MASK), strength=strength
    )
    inside = np.asarray(image(MASK)) > 0
    assert np.array_equal(drawn[inside], expected[inside])
    assert np.array_equal(drawn[~inside], np.asarray(image(PICTURE))[~inside])
    assert np.any(expected[~inside] != np.asarray(image(PICTURE))[~inside]), "there was nothing to put back"


def test_fill(components: FluxComponents) -> None:
    fill = variant_of(components, "fill", 16 + 4 * 4 * 4)
    params = make_params(conditions=(Fill(0, 1),))
    drawn = ours(run_on(fill), params, [PICTURE, MASK])
    expected = theirs(FluxFillPipeline, fill, params, image=image(PICTURE), mask_image=image(MASK))
    inside = np.asarray(image(MASK)) > 0
    assert np.array_equal(drawn[inside], expected[inside])
    assert np.array_equal(drawn[~inside], np.asarray(image(PICTURE))[~inside])


@pytest.mark.parametrize("is_prepared", [True, False])
def test_control(components: FluxComponents, is_prepared: bool) -> None:
    canny = variant_of(components, "canny", 16)
    params = make_params(conditions=(Control("canny", 0, is_prepared),))
    drawn = ours(run_on(canny), params, [PICTURE])
    guide = image(PICTURE) if is_prepared else edges(image(PICTURE))
    assert np.array_equal(drawn, theirs(FluxControlPipeline, canny, params, control_image=guide))


def test_control_that_starts_from_a_picture(components: FluxComponents) -> None:
    canny = variant_of(components, "canny", 16)
    start = picture(48, 32, seed=2)
    params = make_params(num_inference_steps=6, conditions=(Control("canny", 0), ImageToImage(1, 0.7)))
    drawn = ours(run_on(canny), params, [PICTURE, start])
    guide = edges(image(PICTURE))
    expected = theirs(FluxControlImg2ImgPipeline, canny, params, control_image=guide, image=image(start), strength=0.7)
    assert np.array_equal(drawn, expected)


def test_kontext(components: FluxComponents) -> None:
    kontext = variant_of(components, "kontext")
    params = make_params(conditions=(Reference((0,)),))
    drawn = ours(run_on(kontext), params, [PICTURE])
    expected = theirs(FluxKontextPipeline, kontext, params, image=image(PICTURE), max_area=48 * 32, _auto_resize=False)
    assert np.array_equal(drawn, expected)


def test_kontext_without_a_reference_draws_from_the_prompt(components: FluxComponents) -> None:
    kontext = variant_of(components, "kontext")
    params = make_params()
    expected = theirs(FluxKontextPipeline, kontext, params, max_area=48 * 32)
    assert np.array_equal(ours(run_on(kontext), params, []), expected)


def test_kontext_inpainting(components: FluxComponents) -> None:
    kontext = variant_of(components, "kontext")
    params = make_params(num_inference_steps=6, conditions=(Reference((0,)), Inpaint(0, 1, 0.8)))
    drawn = ours(run_on(kontext), params, [PICTURE, MASK])
    expected = theirs(
        FluxKontextInpaintPipeline, kontext, params, image=image(PICTURE), mask_image=image(MASK), strength=0.8,
        max_area=48 * 32, _auto_resize=False,
    )  # fmt: skip
    inside = np.asarray(image(MASK)) > 0
    assert np.array_equal(drawn[inside], expected[inside])
