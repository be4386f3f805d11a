"""FLUX.3 architectures with random weights made on the device: for benchmarks and tests without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLFlux2, Flux3Transformer2DModel
from transformers import Qwen3VLTextConfig

from models.errors import LoadError
from models.flux2.random_weights import CHAT_TEMPLATE
from models.flux3.architectures import ARCHITECTURES
from models.flux3.components import Flux3Components
from models.flux3.text_encoder import PromptEncoder
from models.memory import Offload
from models.random_weights import byte_tokenizer, part_maker
from models.registry import ModelSpec


def random_flux3(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str, float], None],
    offload: Offload = "none",
) -> Flux3Components:
    """A complete FLUX.3 with weights ~ N(0, 0.02): true shapes and speeds, meaningless pictures.

    Raises: LoadError for an unknown architecture.
    """
    if spec.source not in ARCHITECTURES:
        raise LoadError(f"unknown architecture {spec.source!r}: give one of {', '.join(ARCHITECTURES)}.")
    arch = ARCHITECTURES[spec.source]
    made = part_maker(device, dtype, progress, offload)
    tokenizer = byte_tokenizer(spec.max_sequence_length)
    tokenizer.chat_template = CHAT_TEMPLATE
    text = Qwen3VLTextConfig(**arch.text, pad_token_id=0)
    return Flux3Components(
        spec=spec,
        text_encoder=made("text encoder", 0.0, lambda: PromptEncoder(text)),
        transformer=made("transformer", 0.4, lambda: Flux3Transformer2DModel(**arch.transformer)),
        vae=made("vae", 0.98, lambda: AutoencoderKLFlux2(**arch.vae)),
        tokenizer=tokenizer,
        sigma_config=dict(arch.sigmas),
    )
