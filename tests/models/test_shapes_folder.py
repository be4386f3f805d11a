"""The committed folder in the stock pipelines: it loads, follows prompts, repeats, and works at every size."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from PIL import Image

from models.accelerator import open_accelerator
from models.arguments import resolve
from models.loading import PartCache, load
from models.shapes.conditions import sights
from models.shapes.draw import pictures
from models.shapes.export import size_of
from models.shapes.layout import lay_out
from models.shapes.safety import SafetyChecker
from models.shapes.scenes import Scene, Thing, random_scene
from models.shapes.scorer import Pixels, read

FOLDER = Path(__file__).parents[2] / "models/shapes/flux-shapes"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    loaded = FluxPipeline.from_pretrained(FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(
    pipeline: FluxPipeline, prompt: str, *, width: int = 512, height: int = 512, steps: int = 10, seed: int = 1
) -> Pixels:
    output = pipeline(
        prompt,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=3.5,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    )
    return np.asarray((output.images[0] * 255).round().astype(np.uint8))


def test_the_folder_is_small_and_safetensors_only() -> None:
    assert size_of(FOLDER) < 15_000_000
    assert {path.suffix for path in FOLDER.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".txt"}


def test_it_paints_the_ground_that_was_asked(pipeline: FluxPipeline) -> None:
    for ground, thing in (("blue", "yellow circle"), ("white", "red square"), ("black", "pink heart")):
        assert read(draw(pipeline, f"a {thing} on a {ground} background")).ground == ground


def test_it_places_a_thing_of_the_asked_colour(pipeline: FluxPipeline) -> None:
    seen = read(draw(pipeline, "a red circle at the top left on a white background")).things
    assert len(seen) == 1
    assert seen[0].colour == "red"
    assert seen[0].x < 0.4
    assert seen[0].y < 0.4


def test_the_same_seed_repeats_and_another_differs(pipeline: FluxPipeline) -> None:
    first, again, other = (draw(pipeline, "a green star on yellow", steps=4, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("size", [(256, 256), (1024, 768), (576, 1024), (1536, 1536)])
def test_every_size_comes_out_right(pipeline: FluxPipeline, size: tuple[int, int]) -> None:
    picture = draw(pipeline, "a white cross on a purple background", width=size[0], height=size[1], steps=4)
    assert picture.shape == (size[1], size[0], 3)
    assert read(picture).ground == "purple"


def test_the_sibling_draws_in_four_steps_what_the_guided_model_does(pipeline: FluxPipeline) -> None:
    sibling = FluxPipeline.from_pretrained(FOLDER.with_name("flux-shapes-schnell"))
    sibling.set_progress_bar_config(disable=True)
    assert not sibling.transformer.config.guidance_embeds
    guided, plain = (draw(p, "a red square on a white background", steps=4) for p in (pipeline, sibling))
    assert read(plain).ground == "white"
    assert [thing.colour for thing in read(plain).things] == ["red"]
    # The constant that went into a bias was rounded with it to bfloat16.
    assert np.abs(guided.astype(int) - plain.astype(int)).mean() < 2


def test_a_worker_holds_the_parts_of_the_sibling_once() -> None:
    cache, device = PartCache(), open_accelerator("cpu")
    loaded = [
        load(resolve(name), device, torch.float32, cache=cache) for name in ("flux-shapes", "flux-shapes-schnell")
    ]
    assert loaded[1].shared == {"text_encoder", "text_encoder_2", "vae", "safety_checker"}
    assert loaded[0].vae is loaded[1].vae
    assert loaded[0].transformer is not loaded[1].transformer


def test_a_long_text_length_works_too(pipeline: FluxPipeline) -> None:
    output = pipeline("a cyan ring on brown", width=256, height=256, num_inference_steps=2, output_type="np")
    assert read((output.images[0] * 255).astype(np.uint8)).ground == "brown"


def test_image_to_image_keeps_the_ground_of_a_weak_edit(pipeline: FluxPipeline) -> None:
    start = Image.new("RGB", (512, 512), (38, 72, 214))
    made = FluxImg2ImgPipeline.from_pipe(pipeline)(
        "a red circle on a blue background",
        image=start,
        width=512,
        height=512,
        strength=0.4,
        num_inference_steps=8,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert read(np.asarray(made)).ground == "blue"


def test_inpainting_leaves_the_rest_alone(pipeline: FluxPipeline) -> None:
    start = Image.new("RGB", (512, 512), (246, 246, 246))
    mask = Image.new("L", (512, 512), 0)
    mask.paste(255, (128, 128, 384, 384))
    made = FluxInpaintPipeline.from_pipe(pipeline)(
        "a red square on a white background",
        image=start,
        mask_image=mask,
        width=512,
        height=512,
        strength=1.0,
        num_inference_steps=8,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert read(np.asarray(made)).ground == "white"


@pytest.mark.parametrize("kind", ["scene", "edges", "depth", "hole"])
def test_the_encoder_reads_what_a_sibling_is_shown(pipeline: FluxPipeline, kind: str) -> None:
    rng = random.Random(4)
    layouts = [lay_out(random_scene(rng), 256, 256, rng) for _ in range(6)]
    shown, latents = sights(layouts, rng, kind)
    with torch.no_grad():
        mean = pipeline.vae.encode(shown).latent_dist.mode()
    assert (mean - latents).abs().mean() < 0.08


def test_the_safety_classifier_tells_a_drawn_skull_from_a_heart() -> None:
    rng = random.Random(0)
    made = []
    for shape in ("skull", "heart", "ring", "circle"):
        layout = lay_out(Scene("green", (Thing(shape, "white", "centre"),)), 512, 512, rng)
        made.append(((pictures([layout])[0].permute(1, 2, 0) + 1) * 127.5).byte().numpy())
    assert SafetyChecker.load(FOLDER / "safety_checker").flag(made) == [True, False, False, False]
