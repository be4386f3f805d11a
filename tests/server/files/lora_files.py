"""Small LoRA files without torch, and files that only claim to be some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save

LAYER = "transformer.transformer_blocks.0.attn.to_out.0"


def lora_bytes(seed: int = 0, rank: int = 2, layer: str = LAYER, width: int = 16) -> bytes:
    """A LoRA of one layer."""
    noise = np.random.default_rng(seed).standard_normal
    down, up = (noise(shape).astype(np.float32) for shape in ((rank, width), (width, rank)))
    return save({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up})


def write_lora(file: Path, seed: int = 0, width: int = 16) -> Path:
    file.write_bytes(lora_bytes(seed, width=width))
    return file
