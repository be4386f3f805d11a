"""Small LoRA files without torch, and files that only claim to be some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save


def lora_bytes(seed: int = 0, rank: int = 2, layer: str = "transformer.transformer_blocks.0.attn.to_q") -> bytes:
    """A LoRA of one layer of width 16."""
    noise = np.random.default_rng(seed).standard_normal
    down, up = (noise(shape).astype(np.float32) for shape in ((rank, 16), (16, rank)))
    return save({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up})


def write_lora(file: Path, seed: int = 0) -> Path:
    file.write_bytes(lora_bytes(seed))
    return file
