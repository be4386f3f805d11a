"""Writes what packages that pack weights store of a small model, and what numbers they make of it, beside this file.

Run where they are installed: `pip install torchao==0.18.0 optimum-quanto==0.2.7`, then
`python -m tests.models.packages.write`. The tests then need neither.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, QuantoConfig, TorchAoConfig
from safetensors.torch import load_file, save_file
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
)

HERE = Path(__file__).parent
WAYS: dict[str, Any] = {
    "quanto-int8": QuantoConfig(weights_dtype="int8"),
    "quanto-float8": QuantoConfig(weights_dtype="float8"),
    "quanto-int4": QuantoConfig(weights_dtype="int4"),
    "quanto-int2": QuantoConfig(weights_dtype="int2"),
    "torchao-int8": TorchAoConfig(Int8WeightOnlyConfig()),
    "torchao-int8-dynamic": TorchAoConfig(Int8DynamicActivationInt8WeightConfig()),
    "torchao-float8": TorchAoConfig(Float8WeightOnlyConfig()),
    "torchao-int4-groups": TorchAoConfig(IntxWeightOnlyConfig(torch.int4, PerGroup(16))),
}
CONFIG = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "guidance_embeds": False,
    "axes_dims_rope": (4, 6, 6),
}
KEPT = ("single_transformer_blocks.0.proj_out", "transformer_blocks.0.attn.to_q")
"""Layers that are kept; the rest would only make the files large."""


def write(name: str, way: Any) -> None:
    """`name.safetensors` with what is stored, `name.plain.safetensors` with what it means."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        FluxTransformer2DModel(**CONFIG).to(torch.bfloat16).save_pretrained(f"{folder}/plain")
        packed = FluxTransformer2DModel.from_pretrained(
            f"{folder}/plain", quantization_config=way, torch_dtype=torch.bfloat16
        )
        packed.save_pretrained(f"{folder}/packed")
        stored = load_file(f"{folder}/packed/diffusion_pytorch_model.safetensors")
    meant = {f"{layer}.weight": packed.get_submodule(layer).weight.dequantize().contiguous() for layer in KEPT}
    kept = {key: tensor for key, tensor in stored.items() if key.startswith(tuple(f"{layer}." for layer in KEPT))}
    save_file(kept, HERE / f"{name}.safetensors")
    save_file(meant, HERE / f"{name}.plain.safetensors")


if __name__ == "__main__":
    for name, way in WAYS.items():
        write(name, way)
