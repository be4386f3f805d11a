"""Scenes, captions and layouts: what training may see, and that the latents mean what the pictures show."""

import random

import torch

from models.shapes.captions import caption, plain_caption
from models.shapes.draw import latents, pictures, thumbnails
from models.shapes.evaluate import held_out_scenes
from models.shapes.flow import pack, sigmas_of, unpack
from models.shapes.layout import lay_out
from models.shapes.scenes import COLOURS, PLACES, SHAPES, Scene, Thing, is_held_out, random_scene


def test_training_never_draws_a_held_out_combination() -> None:
    rng = random.Random(0)
    seen = {triple for _ in range(2000) for triple in random_scene(rng).triples}
    asked = held_out_scenes(300)
    assert all(is_held_out(scene) for scene in asked)
    assert all(scene.triples - seen for scene in asked)
    assert not seen & {triple for triple in seen if is_held_out(Scene(triple[2], (Thing(*triple[:2], "centre"),)))}


def test_no_held_out_prompt_is_a_training_caption() -> None:
    rng = random.Random(1)
    trained = {caption(random_scene(rng), rng).lower() for _ in range(2000)}
    assert not trained & {plain_caption(scene).lower() for scene in held_out_scenes(300)}


def test_the_vocabulary_is_reached_by_training() -> None:
    rng = random.Random(2)
    things = [thing for _ in range(3000) for thing in random_scene(rng).things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.place for thing in things} >= set(PLACES)


def test_plain_captions_read_like_a_person_wrote_them() -> None:
    star = Thing("star", "red", "top left")
    assert plain_caption(Scene("green", (star,))) == "a red star at the top left on a green background"
    hearts = Scene("orange", (Thing("heart", "pink"),) * 3, "group")
    assert plain_caption(hearts) == "three pink hearts on an orange background"
    pair = Scene("white", (Thing("circle", "red"), Thing("square", "orange")), "row")
    assert plain_caption(pair) == "a red circle and an orange square on a white background"


def test_latents_are_the_pictures_area_averages() -> None:
    rng = random.Random(3)
    layouts = [lay_out(random_scene(rng), 512, 384, rng) for _ in range(6)]
    means = torch.nn.functional.avg_pool2d(pictures(layouts) / 2 + 0.5, 16)
    planes = thumbnails(latents(layouts))
    assert planes.shape == (6, 4, 24, 32)
    assert (planes[:, :3] - means).abs().mean() < 0.004
    assert (planes[:, :3] - means).abs().max() < 0.15


def test_packing_is_what_the_stock_pipeline_does() -> None:
    from diffusers import FluxPipeline

    latent = torch.randn(2, 16, 12, 8)
    packed = pack(latent)
    assert torch.equal(packed, FluxPipeline._pack_latents(latent, 2, 16, 12, 8))
    assert torch.equal(unpack(packed, 12 * 32, 8 * 32), latent)


def test_sigmas_are_what_the_stock_scheduler_makes() -> None:
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    from models.shapes.flow import new_scheduler

    scheduler = new_scheduler()
    config = scheduler.config
    mu = calculate_shift(64, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 12, 12).numpy(), mu=mu)
    assert torch.allclose(scheduler.sigmas, sigmas_of(12, 64), atol=1e-6)
