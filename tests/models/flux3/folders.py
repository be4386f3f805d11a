"""A complete FLUX.3 [klein] of random weights as it is published, with more of Qwen3-VL than is read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from models.accelerator import CpuAccelerator
from models.flux3.architectures import ARCHITECTURES
from models.flux3.components import Flux3Components
from models.loading import load
from models.registry import TINY_FLUX3, TINY_FLUX3_BASE

VISION = {
    "depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8,
    "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip


def save_flux3(folder: Path, is_base: bool = False) -> Path:
    """Returns the folder: with more layers than are read, eyes, and words to predict."""
    parts: Flux3Components = load(TINY_FLUX3_BASE if is_base else TINY_FLUX3, CpuAccelerator())
    text = ARCHITECTURES[TINY_FLUX3.source].text | {"num_hidden_layers": 34, "pad_token_id": 0}
    encoder = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=VISION)).eval()
    loud = {encoder: 0.3, parts.transformer: 0.2, parts.vae: 0.2}  # so that pictures are not flat
    with torch.no_grad():
        for part, std in loud.items():
            for parameter in part.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0.0, std, generator=torch.Generator().manual_seed(parameter.numel()))
    encoder.save_pretrained(folder / "text_encoder")
    for name in ("transformer", "vae", "tokenizer"):
        getattr(parts, name).save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler.from_config(dict(parts.sigma_config)).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "Flux3ModularPipeline" if is_base else "Flux3DistilledModularPipeline",
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
        "tokenizer": ["transformers", "AutoProcessor"],
        "transformer": ["diffusers", "Flux3Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
