"""Diffusers' weights in the layouts and containers that other programs use, written for tests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.components import FluxComponents

Tensors = Mapping[str, Tensor]
_ENDS = (
    ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    ("context_embedder", "txt_in"),
    ("x_embedder", "img_in"),
)
_DOUBLE = (
    ("norm1_context.linear", "txt_mod.lin"),
    ("norm1.linear", "img_mod.lin"),
    ("attn.to_out.0", "img_attn.proj"),
    ("attn.to_add_out", "txt_attn.proj"),
    ("ff.net.0.proj", "img_mlp.0"),
    ("ff.net.2", "img_mlp.2"),
    ("ff_context.net.0.proj", "txt_mlp.0"),
    ("ff_context.net.2", "txt_mlp.2"),
)
_JOINED = (
    ("img_attn.qkv", ("to_q", "to_k", "to_v")),
    ("txt_attn.qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
)
_NORMS = (
    ("norm_q", "img_attn.norm.query"),
    ("norm_k", "img_attn.norm.key"),
    ("norm_added_q", "txt_attn.norm.query"),
    ("norm_added_k", "txt_attn.norm.key"),
)
_ATTENTION = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"), ("group_norm", "norm"))


def bfl(state: Tensors) -> dict[str, Tensor]:
    """A FluxTransformer2DModel's tensors in Black Forest Labs' layout."""
    out: dict[str, Tensor] = {}
    for ending in ("weight", "bias"):
        for theirs, ours in _ENDS:
            if f"{theirs}.{ending}" in state:
                out[f"{ours}.{ending}"] = state[f"{theirs}.{ending}"]
        out[f"final_layer.linear.{ending}"] = state[f"proj_out.{ending}"]
        scale, shift = state[f"norm_out.linear.{ending}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{ending}"] = torch.cat((shift, scale))
    for number in _numbers(state, "transformer_blocks"):
        block, new = f"transformer_blocks.{number}", f"double_blocks.{number}"
        for ending in ("weight", "bias"):
            out |= {f"{new}.{ours}.{ending}": state[f"{block}.{theirs}.{ending}"] for theirs, ours in _DOUBLE}
            for joined, parts in _JOINED:
                out[f"{new}.{joined}.{ending}"] = torch.cat([state[f"{block}.attn.{part}.{ending}"] for part in parts])
        for theirs, ours in _NORMS:
            out[f"{new}.{ours}_norm.scale"] = state[f"{block}.attn.{theirs}.weight"]
    for number in _numbers(state, "single_transformer_blocks"):
        block, new = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        for ending in ("weight", "bias"):
            parts = [state[f"{block}.{part}.{ending}"] for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
            out[f"{new}.linear1.{ending}"] = torch.cat(parts)
            out[f"{new}.linear2.{ending}"] = state[f"{block}.proj_out.{ending}"]
            out[f"{new}.modulation.lin.{ending}"] = state[f"{block}.norm.linear.{ending}"]
        for theirs, ours in (("norm_q", "query"), ("norm_k", "key")):
            out[f"{new}.norm.{ours}_norm.scale"] = state[f"{block}.attn.{theirs}.weight"]
    return out


def ldm_vae(state: Tensors, levels: int) -> dict[str, Tensor]:
    """An AutoencoderKL's tensors in the layout of latent diffusion, as ae.safetensors has them."""
    out = {}
    for name, tensor in state.items():
        new = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
        new = re.sub(r"down_blocks\.(\d+)", r"down.\1", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0", "mid.attn_1").replace(".resnets.", ".block.")
        new = new.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attn_1" in new:
            for theirs, ours in (
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
                ("group_norm", "norm"),
            ):
                new = new.replace(f".{theirs}.", f".{ours}.")
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        out[new] = tensor
    return out


def all_in_one(components: FluxComponents) -> dict[str, Tensor]:
    """ComfyUI's checkpoint of everything, as its CheckpointSave writes it."""
    clip = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in components.text_encoder.state_dict().items()}
    levels = len(components.vae.config.block_out_channels)
    return {
        **prefixed("model.diffusion_model.", bfl(components.transformer.state_dict())),
        **prefixed("vae.", ldm_vae(components.vae.state_dict(), levels)),
        **prefixed("text_encoders.t5xxl.transformer.", components.text_encoder_2.state_dict()),
        **prefixed("text_encoders.clip_l.transformer.", clip),
        "text_encoders.clip_l.logit_scale": torch.tensor(4.6),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.eye(4),
        "text_encoders.t5xxl.logit_scale": torch.tensor(4.6),
    }


def prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def write(file: Path, tensors: Tensors, dtype: torch.dtype | None = None) -> Path:
    """A safetensors file; matrices in `dtype`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    converted = {n: t.to(dtype) if dtype is not None and t.ndim >= 2 else t for n, t in tensors.items()}
    save_file({name: tensor.clone().contiguous() for name, tensor in converted.items()}, file, {"format": "pt"})
    return file


def scaled_float8(tensors: Tensors, suffix: str) -> dict[str, Tensor]:
    """Matrices as ComfyUI's scaled float8: values up to 448 and one scale a matrix."""
    out: dict[str, Tensor] = (
        {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)} if suffix == "scale_weight" else {}
    )
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "_blocks." in name and name.endswith(".weight"):
            scale = tensor.abs().max() / 448
            out[name] = (tensor / scale).to(torch.float8_e4m3fn)
            out[name.removesuffix("weight") + suffix] = scale.float()
        else:
            out[name] = tensor
    return out


def quanto_int8(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Matrices of blocks as quanto stores them (checked against it by `tests/models/packages`), and what they mean."""
    stored, meant = {}, dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "_blocks." in name and name.endswith(".weight"):
            layer, (values, scale) = name.removesuffix(".weight"), _int8(tensor)
            stored |= {f"{name}._data": values, f"{name}._scale": scale}
            stored |= {f"{layer}.{side}put_scale": torch.ones(()) for side in ("in", "out")}
            meant[name] = values * scale
        else:
            stored[name] = tensor
    return stored, meant


def torchao_int8(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Matrices of blocks as torchao stores them (checked against it by `tests/models/packages`), and what they mean."""
    stored, meant = {}, dict(tensors)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "_blocks." in name and name.endswith(".weight"):
            layer, (values, scale) = name.removesuffix(".weight"), _int8(tensor)
            parts = {"qdata": values, "scale": scale, "zero_point": torch.zeros_like(scale, dtype=torch.int8)}
            stored |= {f"{layer}._weight_{part}": value for part, value in parts.items()}
            meant[name] = values * scale
        else:
            stored[name] = tensor
    return stored, meant


def _int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
    return (tensor.float() / scale).round().to(torch.int8), scale


def _k_blocks(values: np.ndarray, kind: str) -> np.ndarray:
    """Bytes (rows, bytes) of Q4_K or Q6_K, which the gguf package can read and not write."""
    pack = {"Q4_K": _q4_k, "Q6_K": _q6_k}[kind]
    blocks = [pack(block) for block in values.reshape(-1, 256)]
    return np.stack(blocks).reshape(values.shape[0], -1)


def _q6_k(block: np.ndarray) -> np.ndarray:
    """Sixteen pieces of 16 numbers from -32 to 31, their scales in int8 under one of float16."""
    pieces = block.reshape(16, 16)
    wanted = np.abs(pieces).max(1) / 31
    unit = np.float16(max(wanted.max() / 127, 1e-7))
    scales = np.maximum(np.round(wanted / np.float32(unit)), 1).astype(np.int8)
    steps = scales.astype(np.float32) * np.float32(unit)
    numbers = (np.clip(np.round(pieces / steps[:, None]), -32, 31) + 32).astype(np.uint8).reshape(2, 4, 32)
    low, high = numbers & 15, numbers >> 4
    halves = np.stack((low[:, :2] | low[:, 2:] << 4,), 0).reshape(-1)
    upper = (high[:, 0] | high[:, 1] << 2 | high[:, 2] << 4 | high[:, 3] << 6).reshape(-1)
    return np.concatenate((halves, upper, scales.view(np.uint8), np.array([unit]).view(np.uint8)))


def _q4_k(block: np.ndarray) -> np.ndarray:
    """Eight pieces of 32 numbers from 0 to 15, with scales and minima of six bits under two of float16."""
    pieces = block.reshape(8, 32)
    least = np.maximum(-pieces.min(1), 0)
    spread = (pieces.max(1) + least) / 15
    units = [np.float16(max(each.max() / 63, 1e-7)) for each in (spread, least)]
    scales, minima = (
        np.clip(np.round(each / np.float32(unit)), 0, 63).astype(np.uint8)
        for each, unit in zip((spread, least), units, strict=True)
    )
    scales = np.maximum(scales, 1)
    steps, floors = scales * np.float32(units[0]), minima * np.float32(units[1])
    numbers = np.clip(np.round((pieces + floors[:, None]) / steps[:, None]), 0, 15).astype(np.uint8)
    first = [scales[:4] | scales[4:] >> 4 << 6, minima[:4] | minima[4:] >> 4 << 6, scales[4:] & 15 | minima[4:] << 4]
    pairs = numbers.reshape(4, 2, 32)
    nibbles = (pairs[:, 0] | pairs[:, 1] << 4).reshape(-1)
    return np.concatenate((np.array(units).view(np.uint8), *first, nibbles))


def write_gguf(file: Path, tensors: Tensors, kind: gguf.GGMLQuantizationType) -> Path:
    """Matrices of blocks in a kind of GGUF, the rest in float32 and one matrix in bfloat16."""
    writer = gguf.GGUFWriter(file, "flux")
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        wanted = (
            kind
            if tensor.ndim == 2 and "_blocks." in name and tensor.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
            else None
        )
        if name == "txt_in.weight":
            wanted = gguf.GGMLQuantizationType.BF16
        if wanted is None:
            writer.add_tensor(name, values)
        else:
            is_k = wanted.name.endswith("_K")
            blocks = _k_blocks(values, wanted.name) if is_k else gguf.quants.quantize(values, wanted)
            writer.add_tensor(name, blocks, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def random_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Bytes of well-formed blocks: gguf cannot write the K kinds, but with sound scales every byte means something."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    for start in _SCALES_AT[kind.name]:
        scales = generator.uniform(0.001, 0.01, len(blocks)).astype(np.float16)
        blocks[:, start : start + 2 or None] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


_SCALES_AT = {"Q2_K": (-4, -2), "Q3_K": (-2,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (-2,), "Q8_0": (0,)}
"""Where float16 scales begin in a block."""


def _numbers(state: Tensors, blocks: str) -> list[int]:
    found = {int(match[1]) for name in state if (match := re.match(rf"{blocks}\.(\d+)\.", name))}
    return sorted(found)
