"""One FLUX.3 transformer forward over any mix of picture sizes, timesteps, references and prompts.

diffusers' own modules, called and never copied. Text, drawn tokens and references first pass blocks of their own, in
which each sees its kind alone, then those of all together. Equal to separate stock forwards: see
tests/pipelines/families/flux3/test_packed.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux3Transformer2DModel
from torch import Tensor

from pipelines.families.double_block import first, project
from pipelines.families.flux3.layout import MODES, Layout, Mode
from pipelines.ops.compute import Compute
from pipelines.ops.ops import Heads, TokenRows

Modulation = Mapping[Mode, Tensor]
"""(R, 6 D) a mode, one row an entry: shift, 1 + scale, gate of the mode's own blocks, then of the joint ones. Of the
drawn tokens (R, 8 D): 1 + scale and shift of the output behind."""


def attention_shape(transformer: Flux3Transformer2DModel) -> tuple[int, int]:
    """Heads, and values a head."""
    return int(transformer.config.num_attention_heads), int(transformer.config.attention_head_dim)


def blocks_of_mode(transformer: Flux3Transformer2DModel, mode: Mode) -> Any:
    return transformer.txt_mode_blocks if mode == "txt" else transformer.mode_blocks[mode]


def embed_time(transformer: Flux3Transformer2DModel, timestep: Tensor, dtype: torch.dtype) -> Tensor:
    """(R,) noise levels in [0, 1], in the model's dtype -> (R, D)."""
    embedded: Tensor = transformer.timestep_embedder(transformer.time_proj(timestep * 1000).to(dtype))
    return embedded


def embed_target(transformer: Flux3Transformer2DModel, target: Tensor, dtype: torch.dtype) -> Tensor:
    """The same of where a step of a flow map jumps to."""
    embedder = transformer.target_timestep_embedder
    assert embedder is not None, "the transformer is no flow map"
    embedded: Tensor = embedder(transformer.time_proj(target * 1000).to(dtype))
    return embedded


def modulation_rows(transformer: Flux3Transformer2DModel, mode: Mode, temb: Tensor) -> Tensor:
    """The vectors of one mode for conditioning `temb` (R, D): see `Modulation`."""
    active, width = F.silu(temb), temb.shape[-1]
    rows = [transformer.early_stream_modulations[mode](active), transformer.single_stream_modulations[mode](active)]
    scales = [1, 4]
    if mode == "image":
        norm_out = transformer.norm_out
        rows.append(norm_out.linear(norm_out.act_fn(temb)))
        scales.append(6)
    joined = torch.cat(rows, dim=-1)
    for vector in scales:
        joined[:, vector * width : (vector + 1) * width] += 1
    return joined


def mode_forward(
    transformer: Flux3Transformer2DModel,
    mode: Mode,
    tokens: Tensor,
    lengths: Sequence[int],
    rope: Tensor,
    modulation: Tensor,
    compute: Compute,
) -> Tensor:
    """The blocks of one mode.

    Args: tokens: (S, D) with S = sum(lengths). rope: (S, 1, head_dim / 2, 2). modulation: (R, 6 D or more).
    """
    rows = TokenRows(lengths, tokens.device)
    vectors = modulation[:, : 3 * tokens.shape[-1]]
    for block in blocks_of_mode(transformer, mode):
        tokens = _block(block, tokens, lengths, rows, rope, vectors, compute)
    return tokens


def packed_forward(
    transformer: Flux3Transformer2DModel,
    layout: Layout,
    latents: Tensor,
    beside: Mapping[Mode, Tensor],
    modulation: Modulation,
    compute: Compute,
    is_begun: bool,
) -> Tensor:
    """Predict the velocity of every picture.

    Args:
        latents: (sum N, in_channels), all pictures' drawn tokens.
        beside: text and references after their embedders.
        is_begun: and after their modes' blocks, which depend on the step of a flow map only.
        modulation: one row an entry.
    Returns: (sum N, in_channels).
    """
    tokens: dict[Mode, Tensor] = {**beside, "image": transformer.x_embedders["image"](latents)}
    width = tokens["image"].shape[-1]
    for mode in MODES:
        if layout.of(mode) and (mode == "image" or not is_begun):
            rows = layout.rows_with(mode, modulation[mode])
            tokens[mode] = mode_forward(
                transformer, mode, tokens[mode], layout.of(mode), layout.ropes(mode), rows, compute
            )
    held = [mode for entry in layout.lengths for mode, length in zip(MODES, entry, strict=True) if length]
    taken = {mode: iter(layout.rows_with(mode, modulation[mode])[:, 3 * width : 6 * width]) for mode in set(held)}
    vectors = torch.stack([next(taken[mode]) for mode in held])
    joint = layout.join([tokens.get(mode, latents.new_zeros(0, width)) for mode in MODES])
    for block in transformer.single_transformer_blocks:
        joint = _block(block, joint, layout.joint_lengths, layout.joint_rows, layout.joint_rope, vectors, compute)
    drawn, ops = layout.drawn(joint), compute.ops
    scale, shift = modulation["image"][:, 6 * width :].chunk(2, dim=-1)
    rows = ops.rows(TokenRows(layout.of("image"), drawn.device))
    normed = ops.norm_modulate(drawn, transformer.norm_out.norm, rows, scale, shift, transformer.proj_out)
    output: Tensor = transformer.proj_out(normed)
    return output


def _block(
    block: Any,
    tokens: Tensor,
    lengths: Sequence[int],
    token_rows: TokenRows,
    rope: Tensor,
    vectors: Tensor,
    compute: Compute,
) -> Tensor:
    """Attention and MLP beside each other: Flux3ModeTransformerBlock.forward and Flux3SingleTransformerBlock.forward.

    Args: lengths: of what sees each other. token_rows: of what is modulated by the same of `vectors`, (rows, 3 D).
    """
    attn, ops = block.attn, compute.ops
    rows, (shift, scale, gate) = ops.rows(token_rows), vectors.chunk(3, dim=-1)
    normed = ops.norm_modulate(tokens, block.norm, rows, scale, shift, first(attn, "to_q", "to_qkv"))
    heads = _rotated(compute, project(attn, normed, ("to_q", "to_k", "to_v"), "to_qkv"), attn, rope)
    update = attn.to_out[0](compute.attend(*heads, lengths)) + block.ff(normed)
    return ops.gate_add(tokens, rows, gate, update)


def _rotated(compute: Compute, heads: Heads, attn: Any, rope: Tensor) -> Heads:
    """Normed and rotated in the norms' float32, rounded once, as the stock module does; kernels do so by themselves."""
    query, key, value = heads
    if compute.ops.name != "triton":
        query, key = query.to(attn.norm_q.weight.dtype), key.to(attn.norm_k.weight.dtype)
    query, key, _ = compute.ops.norm_rotate((query, key, value), (attn.norm_q, attn.norm_k), rope)
    return query.to(value.dtype), key.to(value.dtype), value
