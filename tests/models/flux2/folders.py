"""Complete FLUX.2 checkpoints of random weights as diffusers writes them, with more of a text encoder than is read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models.accelerator import CpuAccelerator
from models.flux2.architectures import ARCHITECTURES
from models.flux2.components import Flux2Components
from models.loading import load
from models.registry import TINY_FLUX2_DEV, TINY_KLEIN, TINY_KLEIN_BASE


def save_klein(folder: Path, is_base: bool = False, layers: int = 30) -> Path:
    """Returns the folder."""
    spec = TINY_KLEIN_BASE if is_base else TINY_KLEIN
    components: Flux2Components = load(spec, CpuAccelerator())
    config = Qwen3Config(**ARCHITECTURES[spec.source].text | {"num_hidden_layers": layers}, pad_token_id=0)
    return _saved(folder, components, Qwen3ForCausalLM(config).eval())


VISION = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def whole_encoder(layers: int) -> Mistral3ForConditionalGeneration:
    text = ARCHITECTURES[TINY_FLUX2_DEV.source].text | {"num_hidden_layers": layers, "model_type": "mistral"}
    vision = VISION | {"image_size": 28, "patch_size": 14, "model_type": "pixtral"}
    return Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)).eval()


def save_dev(folder: Path) -> Path:
    """`random:tiny-flux2-dev` in the published layout: more layers than are read, and the part that sees pictures."""
    components: Flux2Components = load(TINY_FLUX2_DEV, CpuAccelerator())
    return _saved(folder, components, whole_encoder(32))


def _saved(folder: Path, components: Flux2Components, encoder: nn.Module) -> Path:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (encoder, components.transformer, components.vae):
            for parameter in part.parameters():
                if parameter.ndim >= 2:  # loud enough that pictures are not flat
                    parameter.normal_(0.0, 0.2, generator=generator)
    pipeline = components.pipeline()
    pipeline.register_modules(text_encoder=encoder)
    pipeline.save_pretrained(folder)
    return folder
