"""Random LoRAs over a model's layers, written as different trainers write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.adapters.reading import LowRank
from pipelines.adapters.adapter import targets

Parts = dict[str, LowRank]

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
"""Where trainers put LoRAs first: beginnings of layer names."""


def random_lora(
    model: nn.Module, rank: int, seed: int, std: float = 0.15, among: Sequence[str] = BLOCKS, but: str = ".norm"
) -> Parts:
    """Matrices for every layer whose name begins with one of `among` and does not hold `but`."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    return {
        name: LowRank(noise(rank, target.inputs), noise(target.columns, rank))
        for name, target in targets(model).items()
        if name.startswith(tuple(among)) and but not in name
    }


def save_diffusers(parts: Mapping[str, LowRank], file: Path, prefix: str = "transformer.", **metadata: str) -> Path:
    """What `FluxPipeline.save_lora_weights` writes."""
    save_file(diffusers_keys(parts, prefix), file, metadata)
    return file


def diffusers_keys(parts: Mapping[str, LowRank], prefix: str = "transformer.") -> dict[str, Tensor]:
    matrices = {f"{prefix}{name}.lora_A.weight": part.down for name, part in parts.items()}
    return matrices | {f"{prefix}{name}.lora_B.weight": part.up.contiguous() for name, part in parts.items()}


_KOHYA = {
    "attn.to_out.0": "img_attn_proj",
    "ff.net.0.proj": "img_mlp_0",
    "ff.net.2": "img_mlp_2",
    "norm1.linear": "img_mod_lin",
    "attn.to_add_out": "txt_attn_proj",
    "ff_context.net.0.proj": "txt_mlp_0",
    "ff_context.net.2": "txt_mlp_2",
    "norm1_context.linear": "txt_mod_lin",
    "proj_out": "linear2",
    "norm.linear": "modulation_lin",
}
_KOHYA_JOINED = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}


def save_kohya(parts: Mapping[str, LowRank], file: Path, alpha: float, bfl_names: bool = False) -> Path:
    """What kohya's sd-scripts write: BFL's layers, joined projections, an alpha each. `parts` of one rank over all
    linears of the blocks; the matrices are scaled so that the file means the same as they do.

    Args: bfl_names: as ComfyUI and newer trainers write the same: BFL's dotted names with PEFT's suffixes.
    """
    tensors: dict[str, Tensor] = {}
    for block in sorted({".".join(name.split(".")[:2]) for name in parts}):
        kind, index = block.split(".")
        is_single = kind.startswith("single")
        mine = {name.removeprefix(f"{block}."): part for name, part in parts.items() if name.startswith(f"{block}.")}
        names = {"linear1"} if is_single else {"img_attn_qkv", "txt_attn_qkv"}
        layers = {joined: _joined([mine.pop(part) for part in _KOHYA_JOINED[joined]]) for joined in names}
        layers |= {_KOHYA[name]: part for name, part in mine.items()}
        stem = f"lora_unet_{'single' if is_single else 'double'}_blocks_{index}"
        for layer, part in layers.items():
            rank, name = len(part.down), f"{stem}_{layer}"
            if bfl_names:
                dotted = layer.replace("attn_", "attn.").replace("mlp_", "mlp.").replace("mod_", "mod.")
                name = f"diffusion_model.{'single' if is_single else 'double'}_blocks.{index}.{dotted}"
            tensors[f"{name}.lora_down.weight"] = part.down
            tensors[f"{name}.lora_up.weight"] = part.up * (rank / alpha)
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    if bfl_names:
        tensors = {k.replace("_down", "_A").replace("_up", "_B"): v for k, v in tensors.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    return file


def _joined(parts: Sequence[LowRank]) -> LowRank:
    """One LoRA for several layers on one input: ranks and columns side by side."""
    return LowRank(torch.cat([part.down for part in parts]), torch.block_diag(*(part.up for part in parts)))
