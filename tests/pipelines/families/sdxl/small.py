"""Small SDXL models, loud enough that mistakes show in the pixels, and diffusers' own pictures of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from numpy.typing import NDArray
from PIL import Image

from models.accelerator import CpuAccelerator
from models.loading import load
from models.registry import TINY_LIGHTNING, TINY_PLAYGROUND, TINY_SDXL, ModelSpec
from models.sdxl.architectures import TRAILING
from models.sdxl.components import SdxlComponents
from pipelines.engine.engine import Engine
from pipelines.families.sdxl.runner import SdxlRunner
from pipelines.protocol.conditions import ImageToImage, Inpaint, InputPicture
from pipelines.protocol.frames import Finished
from pipelines.protocol.params import GenerationParams
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import drain, make_params, of, pictures, submit

SPECS: dict[str, ModelSpec] = {spec.variant: spec for spec in (TINY_SDXL, TINY_LIGHTNING, TINY_PLAYGROUND)}
SPECS |= {"one-step": TINY_LIGHTNING, "edm-euler": TINY_PLAYGROUND}
SCHEDULES: dict[str, dict[str, object]] = {
    "one-step": TRAILING | {"prediction_type": "sample"},
    "edm-euler": {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_max": 80.0},
}
"""Of variants that differ from a checkpoint in this alone: Lightning for one step predicts the picture itself."""


@cache
def components(variant: str) -> SdxlComponents:
    """In float32 on the CPU, amplified."""
    loaded: SdxlComponents = load(SPECS[variant], CpuAccelerator())
    loaded = replace(loaded, scheduler_config=SCHEDULES.get(variant, loaded.scheduler_config))
    for part, std in (("unet", 0.15), ("vae", 0.2), ("text_encoder", 0.3), ("text_encoder_2", 0.3)):
        amplify(loaded.modules[part], std)
    return loaded


@cache
def runner(variant: str) -> SdxlRunner:
    return SdxlRunner(components(variant), CpuAccelerator())


def engine(variant: str) -> Engine:
    return Engine(lambda name: runner(variant), CpuAccelerator())


def params(variant: str, **changes: object) -> GenerationParams:
    spec = SPECS[variant]
    return make_params(**({"model": spec.name, "guidance_scale": spec.default_guidance} | changes))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def mask(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """White inside the box (left, top, right, bottom)."""
    image = Image.new("L", (width, height))
    image.paste(255, box)
    return image


def give(to: Engine, job: str, wanted: GenerationParams, images: tuple[Image.Image, ...] = ()) -> None:
    sent = [InputPicture(*image.size, len(image.getbands()), image.tobytes()).to_dict() for image in images]
    submit(to, job, wanted, pictures=sent)


def draw(variant: str, wanted: GenerationParams, images: tuple[Image.Image, ...] = ()) -> list[NDArray[np.uint8]]:
    alone = engine(variant)
    give(alone, "a", wanted, images)
    frames = drain(alone)
    assert of(frames, "a", Finished), frames
    return pictures(frames, "a")


@torch.inference_mode()
def theirs(variant: str, wanted: GenerationParams, images: tuple[Image.Image, ...] = ()) -> NDArray[np.uint8]:
    """Diffusers' own picture, of the size that the model draws, before any crop."""
    height, width = runner(variant).limits.drawn(wanted)
    given: dict[str, object] = {"height": height, "width": width}
    kind: type = StableDiffusionXLPipeline
    if (start := wanted.find(ImageToImage)) is not None:
        kind, given = StableDiffusionXLImg2ImgPipeline, {"image": images[0], "strength": start.strength}
    if (inpaint := wanted.find(Inpaint)) is not None:
        kind = StableDiffusionXLInpaintPipeline
        given |= {"image": images[0], "mask_image": images[1], "strength": inpaint.strength}
    drawn = components(variant).pipeline(kind)(
        prompt=wanted.prompt,
        negative_prompt=wanted.negative_prompt or None,
        num_inference_steps=wanted.num_inference_steps,
        guidance_scale=wanted.guidance_scale,
        generator=torch.Generator().manual_seed(wanted.seed),
        **given,
    )
    return np.asarray(drawn.images[0])


def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())
