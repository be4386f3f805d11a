"""FLUX.1's single blocks over packed tokens, split into the parts before and after attention.

`block` is diffusers' own module, called and never copied; `mod` holds its AdaLN vectors, one row a picture, with scales
as 1 + scale. `rows` are what `ops.rows` made of the pack's `TokenRows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.families.double_block import clip_half, project, rotated, vectors
from pipelines.ops.ops import Ops


def single_before(
    block: Any, ops: Ops, joint: Tensor, mod: Tensor, rows: Any, rope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FluxSingleTransformerBlock.forward up to attention -> query, key, value, and the activated MLP (S, 4 D).

    Where `models.fusion` made one linear of all four, the last result is instead (S, 5 D): the value's columns, free
    once attention has read them, in front of the MLP's.
    """
    shift, scale = vectors(mod, 3, 0, 1)
    attn, hidden = block.attn, ops.norm_modulate(joint, block.norm.norm, rows, scale, shift)
    if hasattr(block, "proj_in"):
        wide, dim = block.proj_in(hidden), joint.shape[-1]
        heads = wide[:, : 3 * dim].unflatten(-1, (3, -1, attn.head_dim)).unbind(1)
        torch.ops.aten.gelu_(wide[:, 3 * dim :], approximate=block.act_mlp.approximate)
        tail = wide[:, 2 * dim :]
    else:
        heads = project(attn, hidden, ("to_q", "to_k", "to_v"), "to_qkv")
        tail = block.act_mlp(block.proj_mlp(hidden))
    return *rotated(ops, heads, attn.norm_q, attn.norm_k, rope), tail


def single_after(block: Any, ops: Ops, joint: Tensor, attended: Tensor, tail: Tensor, mod: Tensor, rows: Any) -> Tensor:
    """The rest of FluxSingleTransformerBlock.forward. `tail` comes from `single_before` and may be overwritten."""
    (gate,) = vectors(mod, 3, 2)
    if hasattr(block, "proj_in"):
        tail[:, : attended.shape[-1]] = attended
        hidden = tail
    else:
        hidden = torch.cat((attended, tail), dim=-1)
    return clip_half(ops.gate_add(joint, rows, gate, block.proj_out(hidden)))
