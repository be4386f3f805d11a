"""Tensor names of Black Forest Labs' and ComfyUI's files, as diffusers calls them, without copying a weight.

diffusers has converters of its own; the transformer's knows FLUX.1's width alone and copies every joined matrix.
`tests/models/single/test_layout.py` holds ours to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from models.errors import LoadError
from models.packed import FLOAT8, Float8Weight, Stored, rows, unpacked
from models.registry import Family

_ENDS = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
_SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
_JOINED: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
_FLUX2_ENDS = {
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
}
_FLUX2_MLPS = {
    "img_mlp.0": "ff.linear_in",
    "img_mlp.2": "ff.linear_out",
    "txt_mlp.0": "ff_context.linear_in",
    "txt_mlp.2": "ff_context.linear_out",
}
_FLUX2_SINGLE = {
    "linear1": "attn.to_qkv_mlp_proj",
    "linear2": "attn.to_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}


@dataclass(frozen=True, slots=True)
class _Names:
    """A generation's names of layers: around the blocks, in both kinds of blocks, and of what diffusers takes apart."""

    ends: Mapping[str, str]
    double: Mapping[str, str]
    single: Mapping[str, str]
    joined: Mapping[str, tuple[str, ...]]


_NAMES: dict[Family, _Names] = {
    "flux": _Names(_ENDS, _DOUBLE, _SINGLE, _JOINED),
    "flux2": _Names(
        _FLUX2_ENDS, _DOUBLE | _FLUX2_MLPS, _FLUX2_SINGLE, {k: v for k, v in _JOINED.items() if k != "linear1"}
    ),
}
_MLP = 4
"""Times as wide as its input is an MLP."""
SCALES = (".scale_weight", ".weight_scale")
_NEITHER = (".scale_input", ".input_scale", ".comfy_quant")
"""What ComfyUI's scaled float8 keeps for products in float8; weights that are unpacked do not need it."""


def with_scales(tensors: dict[str, Stored], label: str) -> dict[str, Stored]:
    """float8 matrices as packed weights, with the scales that lie beside them. Raises: LoadError.

    ComfyUI's `X.scale_weight` or `X.weight_scale` belongs to `X.weight`.
    """
    scales = {name.rsplit(".", 1)[0]: tensor for name, tensor in tensors.items() if name.endswith(SCALES)}
    plain: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        if name.endswith((*SCALES, *_NEITHER)) or name == "scaled_fp8":
            continue
        scale = scales.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if isinstance(tensor, torch.Tensor) and tensor.dtype in FLOAT8 and tensor.ndim == 2:
            plain[name] = Float8Weight(tensor, None if scale is None else unpacked(scale, torch.float32))
        elif scale is not None:
            raise LoadError(f"{label}: {name} is packed in a form that is not served (scales beside no float8).")
        else:
            plain[name] = tensor
    return plain


def diffusers_transformer(tensors: Mapping[str, Stored], family: Family = "flux") -> dict[str, Stored]:
    """A transformer in Black Forest Labs' layout by diffusers' names; names that are not known stay as they are."""
    renamed: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        renamed |= _renamed(name, tensor, _NAMES[family])
    return renamed


def _renamed(name: str, tensor: Stored, names: _Names) -> dict[str, Stored]:
    stem, _, ending = name.rpartition(".")
    if stem == "final_layer.adaLN_modulation.1":  # shift and scale stand the other way round in diffusers
        plain, half = (
            unpacked(tensor, torch.float32 if not isinstance(tensor, torch.Tensor) else tensor.dtype),
            tensor.shape[0] // 2,
        )
        return {f"norm_out.linear.{ending}": torch.cat((plain[half:], plain[:half]))}
    if stem in names.ends:
        return {f"{names.ends[stem]}.{ending}": tensor}
    blocks, _, rest = stem.partition(".")
    number, _, layer = rest.partition(".")
    table = {"double_blocks": names.double, "single_blocks": names.single}.get(blocks)
    if table is None:
        return {name: tensor}
    block = f"{'single_' if blocks == 'single_blocks' else ''}transformer_blocks.{number}"
    if layer in table:
        return {f"{block}.{table[layer]}.{'weight' if ending == 'scale' else ending}": tensor}
    if layer in names.joined:
        return {f"{block}.{part}.{ending}": piece for part, piece in _split(tensor, names.joined[layer])}
    return {name: tensor}


def _split(tensor: Stored, parts: tuple[str, ...]) -> list[tuple[str, Stored]]:
    """Rows of a joined matrix or vector by the layer that they belong to."""
    shares = [_MLP if part == "proj_mlp" else 1 for part in parts]
    width, start, pieces = tensor.shape[0] // sum(shares), 0, []
    for part, share in zip(parts, shares, strict=True):
        pieces.append((part, rows(tensor, start, start + share * width)))
        start += share * width
    return pieces


_T5 = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}


def transformers_t5(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """T5's encoder in llama.cpp's layout (GGUF) by transformers' names; names that are not known stay as they are."""
    ends = {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}
    renamed: dict[str, Stored] = {}
    for name, tensor in tensors.items():
        block, _, layer = name.removeprefix("enc.blk.").removesuffix(".weight").partition(".")
        known = name.startswith("enc.blk.") and layer in _T5
        renamed[f"encoder.block.{block}.{_T5[layer]}.weight" if known else ends.get(name, name)] = tensor
    return renamed


def diffusers_vae(tensors: Mapping[str, Stored], config: Mapping[str, object]) -> dict[str, Stored]:
    """A VAE in the layout of latent diffusion by diffusers' names; FLUX.2's statistics of latents stay as they are."""
    plain = {_QUANT.get(name, name): unpacked(tensor, torch.float32) for name, tensor in tensors.items()}
    converted: dict[str, Stored] = convert_ldm_vae_checkpoint(plain, config)
    return converted | {name: tensor for name, tensor in plain.items() if name.startswith("bn.")}


_QUANT = {
    f"{half}.{layer}.{ending}": f"{layer}.{ending}"
    for half, layer in (("encoder", "quant_conv"), ("decoder", "post_quant_conv"))
    for ending in ("weight", "bias")
}
"""Where FLUX.2's file keeps the convolutions around the latents."""
