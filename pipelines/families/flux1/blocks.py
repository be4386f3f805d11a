"""FLUX.1's single blocks over packed tokens, split into the parts before and after attention.

`block` is diffusers' own module, called and never copied; `mod` holds its AdaLN vectors, one row a picture, with scales
as 1 + scale. `rows` are what `ops.rows` made of the pack's `TokenRows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.families.double_block import clip_half, first, project, vectors
from pipelines.ops.ops import Ops


def single_before(
    block: Any, ops: Ops, joint: Tensor, mod: Tensor, rows: Any, rope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FluxSingleTransformerBlock.forward up to attention -> query, key, value, and the MLP (S, 4 D), activated.

    Where `models.fusion` made one linear of all four, the last result is instead (S, 5 D) and not yet activated: the
    value's columns, free once attention has read them, in front of the MLP's.
    """
    shift, scale = vectors(mod, 3, 0, 1)
    attn, is_joined = block.attn, hasattr(block, "proj_in")
    reader = block.proj_in if is_joined else first(attn, "to_q", "to_qkv")
    hidden = ops.norm_modulate(joint, block.norm.norm, rows, scale, shift, reader)
    if is_joined:
        wide, dim = block.proj_in(hidden), joint.shape[-1]
        heads = wide[:, : 3 * dim].unflatten(-1, (3, -1, attn.head_dim)).unbind(1)
        tail = wide[:, 2 * dim :]
    else:
        heads = project(attn, hidden, ("to_q", "to_k", "to_v"), "to_qkv")
        tail = block.act_mlp(block.proj_mlp(hidden))
    return *ops.norm_rotate(heads, (attn.norm_q, attn.norm_k), rope), tail


def single_after(block: Any, ops: Ops, joint: Tensor, attended: Tensor, tail: Tensor, mod: Tensor, rows: Any) -> Tensor:
    """The rest of FluxSingleTransformerBlock.forward. `tail` comes from `single_before` and may be overwritten."""
    (gate,) = vectors(mod, 3, 2)
    if hasattr(block, "proj_in"):
        hidden = ops.join_gelu(attended, tail, block.proj_out)
    else:
        hidden = torch.cat((attended, tail), dim=-1)
    return clip_half(ops.gate_add(joint, rows, gate, block.proj_out(hidden)))
