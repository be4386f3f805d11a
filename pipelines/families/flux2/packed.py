"""One FLUX.2 transformer forward over any mix of picture sizes, timesteps, references and prompts.

As FLUX.1's (`pipelines.families.flux1.packed`), with the modulation that all blocks of a kind share. Equal to separate
stock forwards: see tests/pipelines/families/flux2/test_packed.py.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from pipelines.adapters.binding import inside
from pipelines.families.double_block import clip_half, double_block, vectors
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute
from pipelines.ops.ops import Ops

_SCALES = (1, 4, 7, 10, 13, 15)
"""Which of a row's vectors are scales: of image, text (shift, scale, gate, twice each), single blocks, the output."""
_DOUBLE, _SINGLE = 12, 3
"""Vectors that a block takes."""


def attention_shape(transformer: Flux2Transformer2DModel) -> tuple[int, int]:
    """Heads, and values a head."""
    return int(transformer.config.num_attention_heads), int(transformer.config.attention_head_dim)


def modulation_rows(transformer: Flux2Transformer2DModel, temb: Tensor) -> Tensor:
    """The vectors of all blocks for conditioning `temb` (R, D) -> (R, 17 D). Scales are stored as 1 + scale."""
    norm_out = transformer.norm_out
    rows = torch.cat(
        (
            transformer.double_stream_modulation_img(temb),
            transformer.double_stream_modulation_txt(temb),
            transformer.single_stream_modulation(temb),
            norm_out.linear(norm_out.silu(temb).to(temb.dtype)),
        ),
        dim=-1,
    )
    for vector in _SCALES:
        rows[:, vector * temb.shape[-1] : (vector + 1) * temb.shape[-1]] += 1
    return rows


@inside
def packed_forward(
    transformer: Flux2Transformer2DModel,
    layout: PackLayout,
    latents: Tensor,
    text: Tensor,
    modulation: Tensor,
    compute: Compute,
) -> Tensor:
    """Predict the velocity of every picture.

    Args:
        latents: (sum N, in_channels), all pictures' tokens, each with its references behind.
        text: (sum T, D), prompt embeddings after the context embedder.
        modulation: (R, 17 D), from `modulation_rows`, one row a picture.
    Returns: (sum N, out_channels).
    """
    image, dim = transformer.x_embedder(latents), text.shape[-1]
    double, single, out = modulation.split([_DOUBLE * dim, _SINGLE * dim, 2 * dim], dim=-1)
    for block in transformer.transformer_blocks:
        text, image = double_block(block, layout, text, image, double, compute)
    joint = layout.join(text, image)
    for block in transformer.single_transformer_blocks:
        joint = _single_block(block, layout, joint, single, compute)
    (_, image), (scale, shift) = layout.part(joint), out.chunk(2, dim=-1)
    rows = compute.ops.rows(layout.image_rows)
    normed = compute.ops.norm_modulate(image, transformer.norm_out.norm, rows, scale, shift, transformer.proj_out)
    output: Tensor = transformer.proj_out(normed)
    return output


def _single_block(block: Any, layout: PackLayout, joint: Tensor, mod: Tensor, compute: Compute) -> Tensor:
    ops, rows = compute.ops, compute.ops.rows(layout.joint_rows)
    query, key, value, mlp = compute.region(single_before)(block, ops, joint, mod, rows, layout.ropes[2])
    attended = compute.attend(query, key, value, layout.joint_lengths)
    result: Tensor = compute.region(single_after)(block, ops, joint, attended, mlp, mod, rows)
    return result


def single_before(
    block: Any, ops: Ops, joint: Tensor, mod: Tensor, rows: Any, rope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flux2SingleTransformerBlock.forward up to attention -> query, key, value, and the gated MLP (S, 3 D)."""
    attn, reader = block.attn, block.attn.to_qkv_mlp_proj
    shift, scale = vectors(mod, _SINGLE, 0, 1)
    wide = reader(ops.norm_modulate(joint, block.norm, rows, scale, shift, reader))
    inner = 3 * attn.inner_dim
    heads = wide[:, :inner].unflatten(-1, (3, -1, attn.head_dim)).unbind(1)
    mlp: Tensor = attn.mlp_act_fn(wide[:, inner:])
    return *ops.norm_rotate(heads, (attn.norm_q, attn.norm_k), rope), mlp


def single_after(block: Any, ops: Ops, joint: Tensor, attended: Tensor, mlp: Tensor, mod: Tensor, rows: Any) -> Tensor:
    """The rest of Flux2SingleTransformerBlock.forward."""
    (gate,) = vectors(mod, _SINGLE, 2)
    update = block.attn.to_out(torch.cat((attended, mlp), dim=-1))
    return clip_half(ops.gate_add(joint, rows, gate, update))
