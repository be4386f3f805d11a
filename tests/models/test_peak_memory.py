"""What loading takes at its fullest moment, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from models.components import FluxComponents
from tests.models.single.writers import bfl, write

ROOT = Path(__file__).parents[2]


def peak_of(argument: str) -> int:
    command = [sys.executable, "-m", "tests.models.peak", argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(scope="module")
def large(tiny: FluxComponents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 0.4 GB in bfloat16, most of it transformer."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=6,
            attention_head_dim=128,
            num_attention_heads=9,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=True,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("large") / "large"
    replace(tiny, transformer=transformer).pipeline().save_pretrained(folder)
    write(folder.parent / "large.safetensors", bfl(transformer.state_dict()))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counted by Linux")
@pytest.mark.parametrize("form", [pytest.param("folder", marks=pytest.mark.slow), "file"])
def test_loading_takes_at_most_a_fifth_more_than_the_weights(large: Path, form: str) -> None:
    stored = (large / "transformer" / "diffusion_pytorch_model.safetensors").stat().st_size
    argument = str(large) if form == "folder" else f"{large}+{large.parent / 'large.safetensors'}"
    assert stored > 350e6
    assert peak_of(argument) < 1.2 * stored
