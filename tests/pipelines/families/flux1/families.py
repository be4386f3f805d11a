"""Tiny checkpoints of every family, pictures for them, and diffusers' own pipelines over the same modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from numpy.typing import NDArray
from PIL import Image

from models.accelerator import CpuAccelerator
from models.architectures import ARCHITECTURES
from models.components import FluxComponents
from models.registry import TINY, Variant
from pipelines.engine.engine import Engine
from pipelines.families.flux1.runner import FluxRunner
from pipelines.protocol.conditions import InputPicture
from pipelines.protocol.frames import Failed
from pipelines.protocol.params import GenerationParams
from tests.pipelines.conftest import amplify
from tests.pipelines.driving import drain, make_engine, of, pictures, submit


def variant_of(components: FluxComponents, variant: Variant, extra_channels: int = 0) -> FluxComponents:
    """The same checkpoint as another family's, with more input channels."""
    config = ARCHITECTURES[TINY.source].transformer | {"out_channels": 16, "in_channels": 16 + extra_channels}
    with torch.random.fork_rng():
        torch.manual_seed(7)  # of the biases
        transformer = FluxTransformer2DModel(**config).eval().requires_grad_(False)
    amplify(transformer, 0.2, seed=3)
    return replace(components, spec=replace(TINY, variant=variant, keeps_reference_size=True), transformer=transformer)


def picture(width: int, height: int, seed: int = 0) -> InputPicture:
    """Soft blobs of colour: no two alike, nothing flat."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return InputPicture(width, height, 3, small.resize((width, height), Image.Resampling.BICUBIC).tobytes())


def mask(width: int, height: int, box: tuple[int, int, int, int], soft: int = 0) -> InputPicture:
    """White in the box (left, top, right, bottom), black elsewhere; `soft` pixels of grey around it."""
    values = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    for grey in range(soft, -1, -1):
        level = 255 * (soft + 1 - grey) // (soft + 1)
        values[max(0, top - grey) : bottom + grey, max(0, left - grey) : right + grey] = level
    return InputPicture(width, height, 1, values.tobytes())


def image(given: InputPicture) -> Image.Image:
    return Image.frombytes("RGB" if given.channels == 3 else "L", given.size, given.pixels)


def ours(runner: FluxRunner, params: GenerationParams, given: Sequence[InputPicture]) -> NDArray[np.uint8]:
    """The picture of a lone request."""
    engine = make_engine(runner)
    ask(engine, "a", params, given)
    frames = drain(engine)
    assert not of(frames, "a", Failed), of(frames, "a", Failed)
    (drawn,) = pictures(frames, "a")
    return drawn


def ask(engine: Engine, job: str, params: GenerationParams, given: Sequence[InputPicture]) -> None:
    submit(engine, job, params, pictures=[each.to_dict() for each in given])


@torch.inference_mode()
def theirs(kind: Any, components: FluxComponents, params: GenerationParams, **call: object) -> NDArray[np.uint8]:
    """The picture of diffusers' pipeline `kind` over the same modules."""
    parts = {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae", "transformer"}
    pipeline = kind(
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(components.sigma_config)),
        **{part: getattr(components, part) for part in parts},
        **{part: call.pop(part) for part in ("controlnet",) if part in call},
    )
    pipeline.set_progress_bar_config(disable=True)
    values: dict[str, object] = {
        "prompt": params.prompt,
        "height": params.height,
        "width": params.width,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "max_sequence_length": min(params.max_sequence_length, components.spec.max_sequence_length),
        "generator": torch.Generator().manual_seed(params.seed),
    }
    return np.asarray(pipeline(**(values | call)).images[0])


def run_on(components: FluxComponents) -> FluxRunner:
    return FluxRunner(components, CpuAccelerator())
