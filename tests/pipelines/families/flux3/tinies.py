"""Small FLUX.3 models, loud enough that mistakes show in the pixels, and diffusers' own pictures of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from models.accelerator import CpuAccelerator
from models.flux3.components import Flux3Components
from models.loading import load
from models.registry import TINY_FLUX3, TINY_FLUX3_BASE
from pipelines.engine.engine import Engine
from pipelines.families.flux3.runner import Flux3Runner
from pipelines.protocol.params import GenerationParams
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import make_params


@cache
def tiny(is_base: bool = False) -> Flux3Components:
    """`random:tiny-flux3` in float32 on the CPU, amplified, with statistics of latents that mean something."""
    loaded: Flux3Components = load(TINY_FLUX3_BASE if is_base else TINY_FLUX3, CpuAccelerator())
    for part in ("transformer", "vae", "text_encoder"):
        amplify(loaded.modules[part], 0.2)
    generator = torch.Generator().manual_seed(1)
    loaded.vae.bn.running_mean.normal_(0.0, 0.5, generator=generator)
    loaded.vae.bn.running_var.uniform_(0.3, 2.0, generator=generator)
    return loaded


@cache
def runner(is_base: bool = False) -> Flux3Runner:
    return Flux3Runner(tiny(is_base), CpuAccelerator())


def engine(is_base: bool = False) -> Engine:
    return Engine(lambda name: runner(is_base), CpuAccelerator())


def params(**changes: object) -> GenerationParams:
    return make_params(**({"model": TINY_FLUX3.name, "guidance_scale": 1.0} | changes))


@torch.inference_mode()
def theirs(wanted: GenerationParams, images: Sequence[Image.Image] = (), is_base: bool = False) -> NDArray[np.uint8]:
    """Diffusers' own picture of the first seed, of the size that the model draws, before any crop."""
    height, width = runner(is_base).limits.drawn(wanted)
    pipeline = tiny(is_base).pipeline(wanted.guidance_scale)
    pipeline.set_progress_bar_config(disable=True)
    guided = {"negative_prompt": wanted.negative_prompt} if runner(is_base).limits.is_guided(wanted) else {}
    looked_at = {"image": list(images)} if images else {}
    drawn = pipeline(
        prompt=wanted.prompt,
        height=height,
        width=width,
        num_inference_steps=wanted.num_inference_steps,
        max_sequence_length=runner(is_base).limits.max_sequence_length,
        generator=torch.Generator().manual_seed(wanted.seed),
        output="images",
        **guided,
        **looked_at,
    )
    return np.asarray(drawn[0])
