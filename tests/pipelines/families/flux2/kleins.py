"""Small FLUX.2 models, loud enough that mistakes show in the pixels, and diffusers' own pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.accelerator import CpuAccelerator
from models.flux2.components import Flux2Components
from models.loading import load
from models.registry import TINY_KLEIN, TINY_KLEIN_BASE
from pipelines.engine.engine import Engine
from pipelines.families.flux2.runner import Flux2Runner
from pipelines.protocol.params import GenerationParams
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import make_params


@cache
def klein(is_base: bool = False) -> Flux2Components:
    """`random:tiny-klein` in float32 on the CPU, amplified, with statistics of latents that mean something."""
    loaded: Flux2Components = load(TINY_KLEIN_BASE if is_base else TINY_KLEIN, CpuAccelerator())
    for part, std in (("transformer", 0.2), ("vae", 0.2), ("text_encoder", 0.2)):
        amplify(loaded.modules[part], std)
    generator = torch.Generator().manual_seed(1)
    loaded.vae.bn.running_mean.normal_(0.0, 0.5, generator=generator)
    loaded.vae.bn.running_var.uniform_(0.3, 2.0, generator=generator)
    return loaded


@cache
def runner(is_base: bool = False) -> Flux2Runner:
    return Flux2Runner(klein(is_base), CpuAccelerator())


def engine(is_base: bool = False) -> Engine:
    return Engine(lambda name: runner(is_base), CpuAccelerator())


def params(**changes: object) -> GenerationParams:
    return make_params(**({"model": TINY_KLEIN.name, "guidance_scale": 1.0} | changes))


@torch.inference_mode()
def theirs(
    wanted: GenerationParams, images: Sequence[Image.Image] = (), is_base: bool = False
) -> list[NDArray[np.uint8]]:
    """Diffusers' own pictures, of the size that the model draws, before any crop."""
    pipeline = klein(is_base).pipeline()
    return [theirs_with(pipeline, replace(wanted, seed=seed), is_base, images) for seed in wanted.seeds]


@torch.inference_mode()
def theirs_with(
    pipeline: Any, wanted: GenerationParams, is_base: bool = False, images: Sequence[Image.Image] = ()
) -> NDArray[np.uint8]:
    """What a stock pipeline draws for one seed."""
    height, width = runner(is_base).limits.drawn(wanted)
    max_length = runner(is_base).limits.text_tokens(wanted)
    negative, _ = pipeline.encode_prompt(wanted.negative_prompt, max_sequence_length=max_length)
    drawn = pipeline(
        image=list(images) or None,
        prompt=wanted.prompt,
        height=height,
        width=width,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        negative_prompt_embeds=negative,
        max_sequence_length=max_length,
        generator=torch.Generator().manual_seed(wanted.seed),
    )
    return np.asarray(drawn.images[0])
