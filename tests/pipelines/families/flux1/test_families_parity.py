"""Every family alone in float32 against diffusers' own pipeline, bit for bit unless a tolerance is stated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
)
from numpy.typing import NDArray

from models.auxiliaries import ReduxPrior
from models.components import FluxComponents
from pipelines.families.flux1.runner import FluxRunner
from pipelines.pictures.canny import edges
from pipelines.protocol.conditions import Control, Fill, ImageToImage, Inpaint, InputPicture, Redux, Reference
from pipelines.protocol.frames import Failed
from tests.pipelines.driving import drain, make_engine, make_params, of
from tests.pipelines.families.flux1.families import (
    ask,
    image,
    mask,
    ours,
    picture,
    run_on,
    theirs,
    tiny_prior,
    variant_of,
)

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


@pytest.fixture(scope="module")
def prior() -> ReduxPrior:
    return tiny_prior()


@pytest.mark.parametrize(("scale", "prompt"), [(1.0, "a red circle"), (0.5, "blue"), (1.0, "")])
def test_redux(components: FluxComponents, prior: ReduxPrior, scale: float, prompt: str) -> None:
    long = replace(components, spec=replace(components.spec, max_sequence_length=512))
    params = make_params(
        prompt=prompt,
        max_sequence_length=512,
        conditions=(Redux((0,), "prior", strength=scale, prompt_strength=scale),),
    )
    drawn = ours(run_on(long, prior), params, [picture(20, 30)])
    with torch.inference_mode():
        pipeline = FluxPriorReduxPipeline(
            image_encoder=prior.image_encoder, feature_extractor=prior.image_processor,
            image_embedder=prior.image_embedder, text_encoder=long.text_encoder, tokenizer=long.tokenizer,
            text_encoder_2=long.text_encoder_2, tokenizer_2=long.tokenizer_2,
        )  # fmt: skip
        seen = pipeline(
            image(picture(20, 30)), prompt=prompt, prompt_embeds_scale=scale, pooled_prompt_embeds_scale=scale
        )
    assert seen.prompt_embeds.shape[1] == 512 + 4
    expected = theirs(FluxPipeline, long, params, prompt=None, **seen)
    assert np.array_equal(drawn, expected)


def test_redux_without_strength_is_not_the_same_picture(components: FluxComponents, prior: ReduxPrior) -> None:
    runner = run_on(components, prior)

    def drawn(strength: float, *given: InputPicture) -> NDArray[np.uint8]:
        return ours(runner, make_params(conditions=(Redux(tuple(range(len(given))), "prior", strength),)), given)

    one, other = picture(20, 20, 1), picture(20, 20, 2)
    assert not np.array_equal(drawn(1.0, one), drawn(1.0, other))
    assert np.array_equal(drawn(0.0, one), drawn(0.0, other))
    assert np.array_equal(drawn(1.0, one, other), drawn(1.0, other, one))


@pytest.mark.parametrize("encoder", ["another", "estimator"])
def test_a_model_that_is_not_here_is_named(components: FluxComponents, encoder: str) -> None:
    engine = make_engine(run_on(components))
    ask(engine, "a", make_params(conditions=(Redux((0,), encoder),)), [PICTURE])
    (failed,) = of(drain(engine), "a", Failed)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.loc) == ("input_error", ("redux", "encoder"))
    assert encoder in failed.message
