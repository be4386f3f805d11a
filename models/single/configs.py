"""The constructor arguments of FLUX.1's parts, from the shapes of their tensors. No torch.

What no shape tells is FLUX.1's own (`models.architectures`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from models.architectures import ARCHITECTURES
from models.flux2.architectures import ARCHITECTURES as FLUX2

Shapes = Mapping[str, tuple[int, ...]]
_FLUX = ARCHITECTURES["random:FLUX.1-dev"]
_KLEIN = FLUX2["random:FLUX.2-klein-4B"]
_ROTATED = {128: (16, 56, 56), 32: (8, 12, 12), 16: (4, 6, 6)}
"""Axes of the rotary embedding by width of a head: FLUX.1's, and of the small models in this repository."""
_CLIP_HEAD = 64


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """Of FluxTransformer2DModel. Args: shapes: by diffusers' names. Raises: KeyError if a tensor is missing."""
    hidden, inputs = shapes["x_embedder.weight"]
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    outputs = shapes["proj_out.weight"][0]
    return {
        "patch_size": 1,
        "in_channels": inputs,
        "out_channels": outputs if outputs != inputs else None,
        "num_layers": _count(shapes, "transformer_blocks"),
        "num_single_layers": _count(shapes, "single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": _ROTATED.get(head, _ROTATED[128]),
    }


def flux2_transformer_config(shapes: Shapes) -> dict[str, Any]:
    """Of Flux2Transformer2DModel. Args: shapes: by diffusers' names. Raises: KeyError if a tensor is missing."""
    hidden, inputs = shapes["x_embedder.weight"]
    (head,) = shapes["transformer_blocks.0.attn.norm_q.weight"]
    return {
        "patch_size": 1,
        "in_channels": inputs,
        "num_layers": _count(shapes, "transformer_blocks"),
        "num_single_layers": _count(shapes, "single_transformer_blocks"),
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "timestep_guidance_channels": shapes["time_guidance_embed.timestep_embedder.linear_1.weight"][1],
        "mlp_ratio": shapes["transformer_blocks.0.ff.linear_out.weight"][1] / hidden,
        "guidance_embeds": "time_guidance_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": (head // 4,) * 4,
    }


def qwen3_config(shapes: Shapes) -> dict[str, Any]:
    """Of Qwen3Config. Raises: KeyError if a tensor is missing."""
    words, hidden = shapes["model.embed_tokens.weight"]
    attention = "model.layers.0.self_attn."
    (head,) = shapes[attention + "q_norm.weight"]
    return _KLEIN.text | {
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, "model.layers"),
        "num_attention_heads": shapes[attention + "q_proj.weight"][0] // head,
        "num_key_value_heads": shapes[attention + "k_proj.weight"][0] // head,
        "head_dim": head,
    }


def flux2_vae_config(shapes: Shapes) -> dict[str, Any]:
    """Of AutoencoderKLFlux2. Args: shapes: by the names of either layout. Raises: KeyError if a tensor is missing."""
    quant, post = ("encoder.quant_conv.weight", "quant_conv.weight"), (
        "decoder.post_quant_conv.weight", "post_quant_conv.weight",
    )  # fmt: skip
    own = vae_config(shapes)
    ends = {"use_quant_conv": any(n in shapes for n in quant), "use_post_quant_conv": any(n in shapes for n in post)}
    return {name: own[name] for name in own if name not in ("scaling_factor", "shift_factor", "force_upcast")} | ends


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Of AutoencoderKL. Args: shapes: by the names of either layout. Raises: KeyError if a tensor is missing."""
    is_ldm = "decoder.up.0.block.0.conv1.weight" in shapes
    level = "encoder.down.{}.block.{}.conv1.weight" if is_ldm else "encoder.down_blocks.{}.resnets.{}.conv1.weight"
    levels = next(n for n in range(100) if level.format(n, 0) not in shapes)
    layers = next(n for n in range(100) if level.format(0, n) not in shapes)
    attention = "encoder.mid.attn_1.q.weight" if is_ldm else "encoder.mid_block.attentions.0.to_q.weight"
    latents = shapes["decoder.conv_in.weight"][1]
    return _FLUX.vae | {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(shapes[level.format(n, 0)][0] for n in range(levels)),
        "layers_per_block": layers,
        "latent_channels": latents,
        "mid_block_add_attention": attention in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def clip_config(shapes: Shapes) -> dict[str, Any]:
    """Of CLIPTextConfig. Args: shapes: names with `text_model.` in front. Raises: KeyError if a tensor is missing."""
    words, hidden = shapes["text_model.embeddings.token_embedding.weight"]
    return _FLUX.clip | {
        "vocab_size": words,
        "hidden_size": hidden,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "text_model.encoder.layers"),
        "num_attention_heads": max(1, hidden // _CLIP_HEAD),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "projection_dim": hidden,
        "hidden_act": "quick_gelu",
    }


def t5_config(shapes: Shapes) -> dict[str, Any]:
    """Of T5Config. Raises: KeyError if a tensor is missing."""
    words, hidden = shapes.get("shared.weight") or shapes["encoder.embed_tokens.weight"]
    attention = "encoder.block.0.layer.0.SelfAttention."
    heads = shapes[attention + "relative_attention_bias.weight"][1]
    return _FLUX.t5 | {
        "vocab_size": words,
        "d_model": hidden,
        "d_kv": shapes[attention + "q.weight"][0] // heads,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wo.weight"][1],
        "num_layers": _count(shapes, "encoder.block"),
        "num_heads": heads,
        "dropout_rate": 0.0,
        "is_encoder_decoder": False,
        "use_cache": False,
        "tie_word_embeddings": True,
    }


def _count(shapes: Shapes, blocks: str) -> int:
    pattern = re.compile(rf"{re.escape(blocks)}\.(\d+)\.")
    numbers = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    return max(numbers) + 1 if numbers else 0
