"""FLUX.2 [dev] with Turbo's LoRA worked in, against Flux2Pipeline with the file and `sigmas=` as on fal's card."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from models.accelerator import CpuAccelerator
from models.adapters.merging import merge
from models.flux2.architectures import TURBO_SIGMAS
from models.flux2.components import Flux2Components
from pipelines.adapters.cache import AdapterCache
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.families.flux2.sampling import sigmas_of
from pipelines.protocol.conditions import Adapter, Reference
from pipelines.protocol.params import GenerationParams
from tests.pipelines.adapters.loras import random_lora, save_diffusers
from tests.pipelines.families.flux2 import test_dev as dev

TOLERANCE = 1
PUBLISHED = [1.0, 0.6509, 0.4374, 0.2932, 0.1893, 0.1108, 0.0495, 0.00031]
"""On the card of fal/FLUX.2-dev-Turbo, with 8 steps."""
NAME = "flux.2-turbo-lora.safetensors"


@cache
def base() -> Flux2Components:
    return dev.runner().components


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Over every linear there is."""
    parts = random_lora(base().transformer, rank=3, seed=1, among=("",), but="no layer")
    return save_diffusers(parts, tmp_path_factory.mktemp("loras") / NAME)


def turbo(lora: Path) -> Flux2Runner:
    """The base's weights with the file worked in, as loading does it."""
    transformer = copy.deepcopy(base().transformer)
    merge(lora, "flux2", transformer, torch.device("cpu"), torch.float32)
    spec = replace(base().spec, variant="flux2-turbo", adapter=str(lora))
    made = replace(base(), spec=spec, transformer=transformer)
    return Flux2Runner(made, CpuAccelerator(), adapters=AdapterCache(lora.parent, 1 << 30))


@torch.inference_mode()
def theirs(
    wanted: GenerationParams, *files: Path, images: tuple[Image.Image, ...] = (), sigmas: list[float] | None = None
) -> NDArray[np.uint8]:
    pipeline = replace(base(), transformer=copy.deepcopy(base().transformer)).pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second adapter, which is what we want
        for index, file in enumerate(files):
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"lora{index}")
    if files:
        pipeline.set_adapters([f"lora{index}" for index in range(len(files))])
    drawn = pipeline(
        image=list(images) or None,
        prompt=wanted.prompt,
        height=wanted.height,
        width=wanted.width,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        max_sequence_length=dev.runner().limits.text_tokens(wanted),
        generator=torch.Generator().manual_seed(wanted.seed),
        sigmas=sigmas,
    )
    return np.asarray(drawn.images[0])


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def params(**changes: object) -> GenerationParams:
    return dev.params(**({"num_inference_steps": 8} | changes))


@pytest.mark.parametrize("changes", [{}, {"width": 64, "height": 96, "guidance_scale": 4.0, "prompt": "a red circle"}])
def test_eight_steps_are_what_diffusers_draws(lora: Path, changes: dict[str, object]) -> None:
    wanted = params(**changes)
    ours = dev.draw_by(turbo(lora), wanted)
    assert distance(ours, theirs(wanted, lora, sigmas=PUBLISHED)) <= TOLERANCE
    assert distance(ours, theirs(wanted, lora)) > 20, "the noise levels count"
    assert distance(ours, theirs(wanted, sigmas=PUBLISHED)) > 20, "the LoRA counts"


def test_edits_are_what_diffusers_draws(lora: Path) -> None:
    rng = np.random.default_rng(0)
    images = tuple(Image.fromarray(rng.integers(0, 256, (size, 64, 3), np.uint8)) for size in (64, 96))
    wanted = params(conditions=(Reference((0, 1)),))
    expected = theirs(wanted, lora, images=images, sigmas=PUBLISHED)
    assert distance(dev.draw_by(turbo(lora), wanted, images), expected) <= TOLERANCE


def test_black_forest_labs_names_mean_the_same(tmp_path: Path) -> None:
    """As the file that ComfyUI takes has them."""
    parts = random_lora(base().transformer, rank=2, seed=1, among=("single_transformer_blocks.",))
    mine = save_diffusers(parts, tmp_path / "a-turbo.safetensors")
    renamed = {
        key.replace("transformer.single_transformer_blocks", "diffusion_model.single_blocks")
        .replace("attn.to_qkv_mlp_proj", "linear1")
        .replace("attn.to_out", "linear2"): tensor
        for key, tensor in load_file(mine).items()
    }
    save_file(renamed, tmp_path / "b-turbo.safetensors")
    drawn = [dev.draw_by(turbo(tmp_path / f"{name}-turbo.safetensors"), params()) for name in "ab"]
    assert np.array_equal(*drawn)


def test_loras_of_a_request_come_on_top(lora: Path) -> None:
    other = random_lora(base().transformer, rank=2, seed=2)
    file = save_diffusers(other, lora.parent / "style.safetensors")
    wanted = params(adapters=(Adapter(file.name),))
    ours = dev.draw_by(turbo(lora), wanted)
    assert distance(ours, theirs(wanted, lora, file, sigmas=PUBLISHED)) <= TOLERANCE
    assert distance(ours, dev.draw_by(turbo(lora), params())) > 20


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_other_numbers_of_steps_have_the_base_models_levels(lora: Path, steps: int) -> None:
    wanted = params(num_inference_steps=steps)
    assert distance(dev.draw_by(turbo(lora), wanted), theirs(wanted, lora)) <= TOLERANCE


def test_the_published_levels_are_shifted_by_the_pictures_size() -> None:
    assert list(TURBO_SIGMAS) == PUBLISHED
    small, large = (sigmas_of(base().sigma_config, 8, tokens, TURBO_SIGMAS) for tokens in (256, 4096))
    assert small[0] == large[0] == 1
    assert small[-1] == large[-1] == 0
    assert bool((large[1:-1] > small[1:-1]).all())
