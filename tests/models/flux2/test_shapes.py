"""The trainer of flux2-shapes: a few steps of every part, and a folder that the stock pipeline and ours open alike."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from models.accelerator import CpuAccelerator
from models.arguments import resolve
from models.loading import load
from models.shapes.attention import make_lean
from models.shapes.draw import latents
from models.shapes.flow import pack
from models.shapes.flux2 import evaluate
from models.shapes.flux2.export import codec_of, export_klein
from models.shapes.flux2.flow import AsFlux1, new_transformer
from models.shapes.flux2.text import KleinText
from models.shapes.flux2.train import BASE
from models.shapes.flux2.train_text import train_text
from models.shapes.flux2.training import KleinTraining
from models.shapes.layout import lay_out
from models.shapes.scenes import random_scene
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
def text() -> KleinText:
    figures: list[dict[str, float]] = []
    trained = train_text(2, lambda done, seen: figures.append(seen), device=CPU, batch=4)
    assert figures[-1].keys() == {"loss", "all right"}
    return trained


@pytest.fixture(scope="module")
def folder(text: KleinText, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of both parts, written as a pipeline."""
    torch.manual_seed(0)
    teacher, read = base_transformer(BASE), base_encoders(BASE)
    taught = KleinTraining(text, AsFlux1(new_transformer()), teacher, read, device=CPU, tokens=128)
    losses = [float(taught.step(done)) for done in (0.1, 0.5, 0.5, 0.5, 0.5)]  # scenes, then edits among them
    assert np.isfinite(losses).all()
    assert isinstance(taught.model, AsFlux1)
    with torch.no_grad():  # so that a few steps draw something
        taught.model.transformer.proj_out.weight.normal_(0, 0.5)
    made = tmp_path_factory.mktemp("shapes") / "flux2-shapes"
    assert export_klein(made, taught.model.transformer, text, BASE) < 15_000_000
    return made


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
