"""Training from nothing, as its one command, at the smallest scale; and what turns the result into folders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from models.shapes.flow import Batch, new_transformer, velocity, without_guidance
from models.shapes.train_safety import drawn_pictures

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
SMALLEST = "--minutes 0.04 --text-steps 2 --safety-steps 2 --safety-pictures 6 --score-prompts 2 --tokens 128"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command leaves in an empty folder."""
    folder = tmp_path_factory.mktemp("trained")
    places: list[str | Path] = [
        "--out",
        folder / "shapes",
        "--work",
        folder / "work",
        "--curves",
        folder / "docs/curves.png",
    ]
    command: list[str | Path] = [sys.executable, "-m", "models.shapes.train", *SMALLEST.split(), *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_one_command_makes_two_stock_pipelines(trained: Path) -> None:
    for name, has_guidance in (("shapes", True), ("shapes-schnell", False)):
        pipeline = FluxPipeline.from_pretrained(trained / name)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline.transformer.config.guidance_embeds is has_guidance
        made = pipeline("a red star", width=128, height=64, num_inference_steps=1, max_sequence_length=32).images[0]
        assert made.size == (128, 64)


def test_the_command_draws_its_curves_and_trains_a_classifier(trained: Path) -> None:
    assert (trained / "docs/curves.png").read_bytes().startswith(b"\x89PNG")
    labels = json.loads((trained / "shapes/safety_checker/config.json").read_text())["id2label"]
    assert labels == {"0": "normal", "1": "nsfw"}


def test_the_sibling_shares_all_but_the_transformer(trained: Path) -> None:
    sibling = trained / "shapes-schnell"
    links = {path.name for path in sibling.iterdir() if path.is_symlink()}
    assert {"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "safety_checker"} <= links
    assert (sibling / "vae").resolve() == (trained / "shapes/vae").resolve()
    assert not (sibling / "transformer").is_symlink()


def test_a_fixed_guidance_equals_the_input_at_that_scale() -> None:
    torch.manual_seed(0)
    guided = new_transformer(width=32, double=1, single=1).eval()
    with torch.no_grad():
        for parameter in guided.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        plain = without_guidance(guided, 3.5)
        batch = Batch(torch.randn(2, 16, 64), torch.randn(2, 96), torch.randn(2, 8, 128), 256, 256)
        sigma = torch.tensor([0.3, 0.9])
        expected, other = (
            velocity(guided, batch.latents, sigma, batch, torch.full((2,), scale)) for scale in (3.5, 1.0)
        )
        got = velocity(plain, batch.latents, sigma, batch, None)
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, other, atol=1e-3)


def test_the_classifiers_drawings_are_half_and_half_and_in_range() -> None:
    import random

    pictures, labels = drawn_pictures(8, random.Random(1))
    assert pictures.shape == (8, 3, 128, 128)
    assert pictures.abs().max() <= 1
    assert labels.tolist() == [1, 0] * 4
