"""FLUX.2 architectures with random weights made on the device: for benchmarks and tests without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from transformers import MistralConfig, Qwen3Config

from models.errors import LoadError
from models.flux2.architectures import ARCHITECTURES, Flux2Architecture
from models.flux2.components import Flux2Components
from models.flux2.text_encoder import MISTRAL, QWEN3, MistralPromptEncoder, PromptEncoder
from models.memory import Offload
from models.random_weights import byte_tokenizer, part_maker
from models.registry import ModelSpec

CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
PARTS_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endfor %}"
)


def random_flux2(
    spec: ModelSpec,
    device: torch.device,
    dtype: torch.dtype,
    progress: Callable[[str, float], None],
    offload: Offload = "none",
) -> Flux2Components:
    """A complete FLUX.2 with weights ~ N(0, 0.02): true shapes and speeds, meaningless pictures.

    Raises: LoadError for an unknown architecture.
    """
    if spec.source not in ARCHITECTURES:
        raise LoadError(f"unknown architecture {spec.source!r}: give one of {', '.join(ARCHITECTURES)}.")
    arch = ARCHITECTURES[spec.source]
    made = part_maker(device, dtype, progress, offload)
    tokenizer = byte_tokenizer(spec.max_sequence_length)
    tokenizer.chat_template = PARTS_TEMPLATE if arch.is_mistral else CHAT_TEMPLATE
    return Flux2Components(
        spec=spec,
        text_encoder=made("text encoder", 0.0, lambda: _encoder(arch)),
        transformer=made("transformer", 0.4, lambda: Flux2Transformer2DModel(**arch.transformer)),
        vae=made("vae", 0.98, lambda: AutoencoderKLFlux2(**arch.vae)),
        tokenizer=tokenizer,
        sigma_config=dict(arch.sigmas),
        is_distilled="base" not in spec.variant,
        passes_references_once=arch.passes_references_once,
        reading=MISTRAL if arch.is_mistral else QWEN3,
    )


def _encoder(arch: Flux2Architecture) -> PromptEncoder | MistralPromptEncoder:
    if arch.is_mistral:
        return MistralPromptEncoder(MistralConfig(**arch.text, pad_token_id=0))
    return PromptEncoder(Qwen3Config(**arch.text, pad_token_id=0))
