"""The trainer of flux2-shapes: a few steps of every part, and a folder that the stock pipeline and ours open alike."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load
from models.shapes.attention import make_lean
from models.shapes.draw import latents
from models.shapes.flow import pack, velocity
from models.shapes.flux2 import evaluate
from models.shapes.flux2.export import codec_of, export_klein
from models.shapes.flux2.flow import AsFlux1, new_transformer
from models.shapes.flux2.graft import CURVES, LEVELS, Curves, grafted, shared_by
from models.shapes.flux2.train import BASE, asked, started, text_from
from models.shapes.flux2.training import GUIDANCE, KleinTraining
from models.shapes.layout import lay_out
from models.shapes.scenes import EVERY_KIND, random_scene
from models.shapes.train_flow import make_batch
from models.shapes.train_siblings import base_encoders, base_transformer
from pipelines.engine.engine import Engine
from pipelines.families.flux2.latents import decodable, encoded
from pipelines.families.flux2.latents import pack as pack_patches
from pipelines.families.flux2.runner import Flux2Runner
from tests.pipelines.driving import drain, make_params, pictures, submit

CPU = torch.device("cpu")
# Under autocast the stock module's norms keep their weights in float32.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture(scope="module")
def teacher() -> FluxTransformer2DModel:
    return base_transformer(BASE).requires_grad_(False)


@pytest.fixture(scope="module")
def folder(teacher: FluxTransformer2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of both parts, written as a pipeline."""
    torch.manual_seed(0)
    work, read, figures = tmp_path_factory.mktemp("work"), base_encoders(BASE), list[dict[str, float]]()
    for _ in range(2):  # the second time from its checkpoint
        text, matrix = text_from(work, 2, teacher, read, CPU, lambda done, seen: figures.append(seen))
    assert [each.keys() for each in figures] == [{"distance", "all right"}] * 2
    before = copy.deepcopy(text.encoder.state_dict())
    model = asked(started(text, matrix, teacher, read))
    taught = KleinTraining(text, model, teacher, read, device=CPU, tokens=128)
    losses = [float(taught.step(done)) for done in (0.1, 0.5, 0.5, 0.5, 0.5)]  # scenes, then edits among them
    assert np.isfinite(losses).all()
    editor = model.model
    assert isinstance(editor, AsFlux1)
    learned = editor.text_of(text)
    assert any(not torch.equal(value, before[name]) for name, value in learned.encoder.state_dict().items())
    made = tmp_path_factory.mktemp("shapes") / "flux2-shapes"
    assert export_klein(made, editor.transformer, learned, BASE) < 10_000_000, "the codec is the base's"
    return made


def test_the_graft_starts_near_its_teacher(teacher: FluxTransformer2DModel) -> None:
    """As near as FLUX.2 can be, which has no pooled vector: the teacher is asked with the mean of many captions'."""
    torch.manual_seed(0)
    read, rng = base_encoders(BASE), random.Random(0)
    shown = make_batch(read, rng, EVERY_KIND, (512, 512), 64)
    transformer = new_transformer()
    grafted(teacher, transformer, shown, GUIDANCE)
    transformer.context_embedder = teacher.context_embedder
    batch = make_batch(read, rng, EVERY_KIND, (512, 512), 32)
    batch.pooled = shown.pooled.mean(0).expand_as(batch.pooled)
    sigma = torch.linspace(0.05, 1, 32)
    noisy = batch.latents + sigma.view(-1, 1, 1) * (torch.randn_like(batch.latents) - batch.latents)
    with torch.no_grad():
        aim = velocity(teacher, noisy, sigma, batch, torch.full_like(sigma, GUIDANCE))
        guess = velocity(AsFlux1(transformer), noisy, sigma, batch, None)
    assert (guess - aim).square().mean() < 0.2 * aim.square().mean()


def test_what_blocks_share_is_made_up_for_exactly_where_it_can_be() -> None:
    """Scales and gates that differ by a factor, shifts along few curves, inputs that leave some directions empty."""
    torch.manual_seed(0)
    width, blocks = 32, 3
    curve = torch.linspace(-1, 1, LEVELS)[:, None]
    scale, gate = 1 + 0.3 * curve * torch.rand(width), 0.5 + torch.rand(width) * curve.square()
    factors = 0.5 + torch.rand(blocks, width)
    own = [Curves(torch.randn(width) + curve * torch.randn(width), scale * f - 1, gate * f) for f in factors]
    inside = torch.randn(200, width)
    inside[:, :CURVES] = 0
    shared = shared_by(own, [inside.T @ inside / len(inside)] * blocks)
    weight, bias = torch.randn(8, width), torch.randn(8)
    for i, block in enumerate(own):
        for level in (0, LEVELS // 3, LEVELS - 1):
            seen = inside * (1 + shared.curves.scale[level]) + shared.curves.shift[level]
            meant = (inside * (1 + block.scale[level]) + block.shift[level]) @ weight.T + bias
            assert torch.allclose(seen @ shared.reading(i, weight, bias).T, meant, atol=1e-3)
            assert torch.allclose(shared.gates[i] * shared.curves.gate[level], block.gate[level], atol=1e-4)


def test_the_stock_pipeline_and_ours_draw_the_same(folder: Path) -> None:
    spec = resolve(str(folder))
    assert (spec.family, spec.variant) == ("flux2", "klein-4b")
    runner = Flux2Runner(load(spec, CpuAccelerator()), CpuAccelerator())
    assert runner.has_safety_checker
    engine = Engine(lambda name: runner, CpuAccelerator())
    submit(engine, "a", make_params(width=192, height=128, guidance_scale=1.0, max_sequence_length=32))
    (ours,) = pictures(drain(engine), "a")
    pipeline = evaluate.open_pipeline(folder)
    theirs = pipeline(
        prompt="a red circle",
        width=192,
        height=128,
        num_inference_steps=4,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(7),
    ).images[0]
    assert np.array_equal(ours, np.asarray(theirs))
    assert np.std(ours) > 5


def test_a_folder_is_scored_by_scenes_and_edits(folder: Path) -> None:
    pipeline = evaluate.open_pipeline(folder)
    figures = evaluate.drawing_rates(pipeline, 1, 128, 1) | evaluate.edit_rates(pipeline, 1, 128, 1)
    assert {"ground", "colour", "edits done", "all else kept"} <= figures.keys()


def test_the_codec_sees_and_draws_as_flux1s_with_the_latents_that_are_trained_on() -> None:
    old, new, rng = AutoencoderKL.from_pretrained(BASE / "vae"), codec_of(BASE), random.Random(3)
    layout = lay_out(random_scene(rng), 128, 192, rng)
    with torch.no_grad():
        clean = latents([layout])
        drawn = old.decode(clean).sample
        patches = pack(clean).view(1, 3, 2, 64).permute(0, 3, 1, 2)
        assert torch.allclose(new.decode(decodable(new, patches)).sample, drawn, atol=1e-4)
        seen = pack_patches(encoded(new, drawn))
        assert torch.allclose(seen, pack(old.encode(drawn).latent_dist.mode())[0], atol=1e-4)


def test_the_lean_attention_is_the_stock_one() -> None:
    torch.manual_seed(0)
    model = AsFlux1(new_transformer())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1)
        given = {
            "hidden_states": torch.randn(2, 6, 64),
            "timestep": torch.rand(2),
            "encoder_hidden_states": torch.randn(2, 5, 192),
            "img_ids": torch.randint(0, 9, (6, 3)).float(),
        }
        stock = model(**given)[0]
        make_lean(model)
        assert torch.allclose(model(**given)[0], stock, atol=1e-4)


def test_references_stand_apart_by_ten_and_words_in_a_row() -> None:
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, **given: torch.Tensor) -> tuple[torch.Tensor]:
            seen.update(given)
            return (given["hidden_states"],)

    ids = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 2.0]])
    AsFlux1(Spy())(torch.zeros(1, 2, 64), torch.ones(1), torch.zeros(1, 3, 192), ids, guidance=None)  # type: ignore[arg-type]
    assert seen["img_ids"].tolist() == [[0, 1, 2, 0], [10, 1, 2, 0]]
    assert seen["txt_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 2]]
