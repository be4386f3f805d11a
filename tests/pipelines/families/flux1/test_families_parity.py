"""Every family alone in float32 against diffusers' own pipeline, bit for bit unless a tolerance is stated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxMultiControlNetModel,
    FluxPipeline,
    FluxPriorReduxPipeline,
)
from numpy.typing import NDArray
from torch.nn import functional

from models.accelerator import CpuAccelerator
from models.architectures import ARCHITECTURES
from models.auxiliaries import Auxiliary, DepthEstimator, ReduxPrior, load_auxiliary
from models.auxiliaries import ControlNet as Net
from models.components import FluxComponents
from models.registry import TINY, ModelSpec, Variant
from pipelines.families.flux1.prepare import PictureReader
from pipelines.families.flux1.runner import FluxRunner
from pipelines.families.flux1.sampling import unshifted
from pipelines.pictures.canny import edges
from pipelines.pictures.depth import depth_of
from pipelines.protocol.conditions import (
    Coarse,
    Condition,
    Control,
    ControlNet,
    Fill,
    ImageToImage,
    Inpaint,
    InputPicture,
    Redux,
    Reference,
    Refine,
)
from pipelines.protocol.frames import Failed, Finished
from tests.pipelines.driving import drain, make_engine, make_params, of
from tests.pipelines.families.flux1.families import (
    ask,
    image,
    mask,
    ours,
    picture,
    run_on,
    save_estimator,
    theirs,
    tiny_net,
    tiny_prior,
    variant_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")

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


def test_depth_is_told_by_an_estimator(components: FluxComponents, tmp_path: Path) -> None:
    save_estimator(tmp_path)
    estimator = load_auxiliary(ModelSpec("it", str(tmp_path), variant="depth-estimator"), CpuAccelerator())
    assert isinstance(estimator, DepthEstimator)
    depth = variant_of(components, "depth", 16)
    params = make_params(conditions=(Control("depth", 0),))
    drawn = ours(run_on(depth, estimator), params, [PICTURE])
    with torch.inference_mode():
        guide = depth_of(estimator, image(PICTURE))
    assert np.array_equal(drawn, theirs(FluxControlPipeline, depth, params, control_image=guide))


def test_without_an_estimator_a_depth_picture_has_to_be_sent(components: FluxComponents) -> None:
    engine = make_engine(run_on(variant_of(components, "depth", 16)))
    ask(engine, "a", make_params(conditions=(Control("depth", 0),)), [PICTURE])
    ask(engine, "b", make_params(conditions=(Control("depth", 0, is_prepared=True),)), [PICTURE])
    frames = drain(engine)
    (failed,) = of(frames, "a", Failed)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.loc) == ("input_error", ("control", "picture"))
    assert "send a depth picture" in failed.message
    assert of(frames, "b", Finished)


@pytest.mark.parametrize(
    ("variant", "conditions", "words"),
    [
        ("dev", (Fill(0, 0),), "a dev model cannot do fill"),
        ("dev", (Reference((0,)),), "a dev model cannot do reference"),
        ("fill", (), "a fill model draws only with fill"),
        ("canny", (Control("depth", 0),), "a canny model cannot follow depth"),
        ("kontext", (Reference((0,)), ControlNet("n", 0)), "one or the other"),
        ("dev", (Coarse(), ImageToImage(0, 0.5)), "with a prompt only"),
        ("dev", (Refine(), Inpaint(0, 0, 0.5)), "a second phase goes with"),
    ],
)
def test_what_a_checkpoint_was_not_trained_for_is_refused(
    components: FluxComponents, variant: Variant, conditions: tuple[Condition, ...], words: str
) -> None:
    engine = make_engine(run_on(variant_of(components, variant)))
    ask(engine, "a", make_params(conditions=conditions), [PICTURE])
    (failed,) = of(drain(engine), "a", Failed)
    assert isinstance(failed, Failed)
    assert words in failed.message


def test_a_reference_is_seen_at_the_nearest_of_kontexts_sizes(components: FluxComponents) -> None:
    kontext = variant_of(components, "kontext")
    kontext = replace(kontext, spec=replace(kontext.spec, keeps_reference_size=False))
    given = picture(100, 64)
    prepared = PictureReader(kontext, make_params(conditions=(Reference((0,)),)), [given], (32, 48), None).read()
    assert prepared.references[0].shape[-2:] == (832, 1248)


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


def test_the_strength_of_redux_is_how_much_pictures_count(components: FluxComponents, prior: ReduxPrior) -> None:
    runner = run_on(components, prior)

    def drawn(strength: float, *given: InputPicture) -> NDArray[np.uint8]:
        return ours(runner, make_params(conditions=(Redux(tuple(range(len(given))), "prior", strength),)), given)

    one, other = picture(20, 20, 1), picture(20, 20, 2)
    assert not np.array_equal(drawn(1.0, one), drawn(1.0, other))
    assert np.array_equal(drawn(0.0, one), ours(runner, make_params(), [])), "as without a picture"
    assert np.array_equal(drawn(1.0, one, other), drawn(1.0, other, one))


def test_a_prompt_without_strength_does_not_count(components: FluxComponents, prior: ReduxPrior) -> None:
    def drawn(prompt: str, strength: float) -> NDArray[np.uint8]:
        params = make_params(prompt=prompt, conditions=(Redux((0,), "prior", 1.0, prompt_strength=strength),))
        return ours(run_on(components, prior), params, [picture(20, 20, 1)])

    assert np.array_equal(drawn("a red circle", 0.0), drawn("blue", 0.0))
    assert not np.array_equal(drawn("a red circle", 0.9), drawn("blue", 0.9))


@pytest.mark.parametrize(
    ("condition", "loc"),
    [(Redux((0,), "it"), ("redux", "encoder")), (ControlNet("it", 0), ("controlnet", "name"))],
)
def test_a_helper_of_another_model_is_refused(
    components: FluxComponents, condition: Condition, loc: tuple[str, ...]
) -> None:
    helper: Auxiliary = tiny_prior(joint_dim=32)
    if isinstance(condition, ControlNet):
        wider = ARCHITECTURES[TINY.source].transformer | {"num_attention_heads": 4, "axes_dims_rope": (4, 6, 6)}
        helper = Net(ModelSpec("it", "it", variant="controlnet"), FluxControlNetModel(**wider))
    engine = make_engine(run_on(components, replace(helper, spec=replace(helper.spec, name="it"))))
    ask(engine, "a", make_params(conditions=(condition,)), [PICTURE])
    (failed,) = of(drain(engine), "a", Failed)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.loc) == ("input_error", loc)
    assert "made for another" in failed.message


@pytest.mark.parametrize("encoder", ["another", "estimator"])
def test_a_model_that_is_not_here_is_named(components: FluxComponents, encoder: str) -> None:
    engine = make_engine(run_on(components))
    ask(engine, "a", make_params(conditions=(Redux((0,), encoder),)), [PICTURE])
    (failed,) = of(drain(engine), "a", Failed)
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.loc) == ("input_error", ("redux", "encoder"))
    assert encoder in failed.message


@pytest.mark.parametrize(("doubles", "singles"), [(2, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.2, 0.7)])
def test_controlnet(components: FluxComponents, doubles: int, singles: int, start: float, end: float) -> None:
    net = tiny_net("edges", doubles, singles)
    condition = ControlNet("edges", 0, 0.7, start, end, "canny")
    params = make_params(num_inference_steps=6, conditions=(condition,))
    drawn = ours(run_on(components, net), params, [PICTURE])
    expected = theirs(
        FluxControlNetPipeline, components, params, controlnet=net.net, control_image=edges(image(PICTURE)),
        controlnet_conditioning_scale=0.7, control_guidance_start=start, control_guidance_end=end,
    )  # fmt: skip
    assert np.array_equal(drawn, expected)
    assert not np.array_equal(drawn, ours(run_on(components), make_params(num_inference_steps=6), []))


def test_controlnet_that_starts_from_a_picture(components: FluxComponents) -> None:
    net, start = tiny_net("edges"), picture(48, 32, seed=2)
    conditions = (ControlNet("edges", 0, 0.7, 0.0, 1.0), ImageToImage(1, 0.7))
    params = make_params(num_inference_steps=6, conditions=conditions)
    expected = theirs(
        FluxControlNetImg2ImgPipeline, components, params, controlnet=net.net, control_image=image(PICTURE),
        controlnet_conditioning_scale=0.7, image=image(start), strength=0.7,
    )  # fmt: skip
    assert np.array_equal(ours(run_on(components, net), params, [PICTURE, start]), expected)


def test_two_controlnets_add_up(components: FluxComponents) -> None:
    """To one level of 255: diffusers adds them to each other first, the engine one after the other to the tokens."""
    nets, guides = [tiny_net("a"), tiny_net("b", seed=6)], [picture(48, 32, 1), picture(48, 32, 2)]
    params = make_params(conditions=(ControlNet("a", 0, 0.5), ControlNet("b", 1, 0.25)))
    drawn = ours(run_on(components, *nets), params, guides)
    expected = theirs(
        FluxControlNetPipeline, components, params, controlnet=FluxMultiControlNetModel([net.net for net in nets]),
        control_image=[image(guide) for guide in guides], controlnet_conditioning_scale=[0.5, 0.25],
    )  # fmt: skip
    assert np.abs(drawn.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("strength", [0.5, 0.25])
def test_a_second_phase_is_image_to_image_on_the_enlarged_picture(components: FluxComponents, strength: float) -> None:
    small = replace(components, spec=replace(components.spec, native_pixels=48 * 32))
    params = make_params(width=96, height=64, num_inference_steps=8, conditions=(Refine(strength),))
    drawn = ours(run_on(small), params, [])
    first = theirs(FluxPipeline, small, params, width=48, height=32, output_type="pt")
    larger = functional.interpolate(torch.as_tensor(first)[None] * 2 - 1, size=(64, 96), mode="bicubic").clamp(-1, 1)
    expected = theirs(
        FluxImg2ImgPipeline, small, params, image=larger / 2 + 0.5, strength=strength,
        sigma_config=unshifted(small.sigma_config),
    )  # fmt: skip
    # To one level of 255: between its pipelines diffusers goes through [0, 1] and back, which rounds.
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert np.abs(drawn.astype(int) - theirs(FluxPipeline, small, params)).max() > 20
