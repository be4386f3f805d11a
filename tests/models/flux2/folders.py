"""A complete FLUX.2 [klein] of random weights as diffusers writes it, with more of Qwen3 than is read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from models.accelerator import CpuAccelerator
from models.flux2.architectures import ARCHITECTURES
from models.flux2.components import Flux2Components
from models.loading import load
from models.registry import TINY_KLEIN, TINY_KLEIN_BASE


def save_klein(folder: Path, is_base: bool = False, layers: int = 30) -> Path:
    """Returns the folder."""
    spec = TINY_KLEIN_BASE if is_base else TINY_KLEIN
    components: Flux2Components = load(spec, CpuAccelerator())
    config = Qwen3Config(**ARCHITECTURES[spec.source].text | {"num_hidden_layers": layers}, pad_token_id=0)
    encoder, generator = Qwen3ForCausalLM(config).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (encoder, components.transformer, components.vae):
            for parameter in part.parameters():
                if parameter.ndim >= 2:  # loud enough that pictures are not flat
                    parameter.normal_(0.0, 0.2, generator=generator)
    pipeline = components.pipeline()
    pipeline.register_modules(text_encoder=encoder)
    pipeline.save_pretrained(folder)
    return folder
