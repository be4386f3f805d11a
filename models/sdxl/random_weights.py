"""SDXL architectures with random weights made on the device: for benchmarks and tests without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.errors import LoadError
from models.memory import Offload
from models.random_weights import byte_tokenizer, clip_config, part_maker
from models.registry import ModelSpec
from models.sdxl.architectures import ARCHITECTURES, CLIP_TOKENS
from models.sdxl.components import SdxlComponents


def random_sdxl(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str, float], None],
    offload: Offload = "none",
) -> SdxlComponents:
    """A complete SDXL with weights ~ N(0, 0.02): true shapes and speeds, meaningless pictures.

    Raises: LoadError for an unknown architecture.
    """
    if spec.source not in ARCHITECTURES:
        raise LoadError(f"unknown architecture {spec.source!r}: give one of {', '.join(ARCHITECTURES)}.")
    arch = ARCHITECTURES[spec.source]
    made = part_maker(device, dtype, progress, offload)
    return SdxlComponents(
        spec=spec,
        text_encoder=made("text encoder", 0.0, lambda: CLIPTextModel(clip_config(arch.clip))),
        text_encoder_2=made(
            "text encoder 2", 0.1, lambda: CLIPTextModelWithProjection(clip_config(arch.clip_2, "gelu"))
        ),
        unet=made("unet", 0.3, lambda: UNet2DConditionModel(**arch.unet)),
        vae=made("vae", 0.98, lambda: AutoencoderKL(**arch.vae)),
        tokenizer=byte_tokenizer(CLIP_TOKENS),
        tokenizer_2=byte_tokenizer(CLIP_TOKENS),
        scheduler_config=dict(arch.scheduler),
    )
