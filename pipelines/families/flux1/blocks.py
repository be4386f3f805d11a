"""FLUX.1's two kinds of block over packed tokens, split into the parts before and after attention.

`block` is diffusers' own module, called and never copied; `mod` holds its AdaLN vectors, one row a picture, with scales
as 1 + scale. `rows` are what `ops.rows` made of the pack's `TokenRows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.ops.ops import Ops

Heads = tuple[Tensor, Tensor, Tensor]
"""Query, key and value, each (tokens, heads, head_dim); queries and keys are normalised and rotated."""


def double_before(
    block: Any,
    ops: Ops,
    text: Tensor,
    image: Tensor,
    mod: Tensor,
    text_rows: Any,
    image_rows: Any,
    text_rope: Tensor,
    image_rope: Tensor,
) -> tuple[Heads, Heads]:
    """FluxTransformerBlock.forward up to attention -> (text's, image's)."""
    attn = block.attn
    image_shift, image_scale, text_shift, text_scale = _vectors(mod, 12, 0, 1, 6, 7)
    image = ops.norm_modulate(image, block.norm1.norm, image_rows, image_scale, image_shift)
    text = ops.norm_modulate(text, block.norm1_context.norm, text_rows, text_scale, text_shift)
    text_heads = _project(attn, text, ("add_q_proj", "add_k_proj", "add_v_proj"), "to_added_qkv")
    image_heads = _project(attn, image, ("to_q", "to_k", "to_v"), "to_qkv")
    return (
        _rotated(ops, text_heads, attn.norm_added_q, attn.norm_added_k, text_rope),
        _rotated(ops, image_heads, attn.norm_q, attn.norm_k, image_rope),
    )


def double_after(
    block: Any,
    ops: Ops,
    text: Tensor,
    image: Tensor,
    text_attended: Tensor,
    image_attended: Tensor,
    mod: Tensor,
    text_rows: Any,
    image_rows: Any,
) -> tuple[Tensor, Tensor]:
    """The rest of FluxTransformerBlock.forward -> (text, image)."""
    attn = block.attn
    image_gate, image_shift, image_scale, image_mlp_gate = _vectors(mod, 12, 2, 3, 4, 5)
    text_gate, text_shift, text_scale, text_mlp_gate = _vectors(mod, 12, 8, 9, 10, 11)
    image = ops.gate_add(image, image_rows, image_gate, attn.to_out[1](attn.to_out[0](image_attended)))
    text = ops.gate_add(text, text_rows, text_gate, attn.to_add_out(text_attended))
    image_hidden = ops.norm_modulate(image, block.norm2, image_rows, image_scale, image_shift)
    text_hidden = ops.norm_modulate(text, block.norm2_context, text_rows, text_scale, text_shift)
    image = ops.gate_add(image, image_rows, image_mlp_gate, block.ff(image_hidden))
    text = ops.gate_add(text, text_rows, text_mlp_gate, block.ff_context(text_hidden))
    return _clip_half(text), image


def single_before(
    block: Any, ops: Ops, joint: Tensor, mod: Tensor, rows: Any, rope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FluxSingleTransformerBlock.forward up to attention -> query, key, value, and the activated MLP (S, 4 D).

    Where `models.fusion` made one linear of all four, the last result is instead (S, 5 D): the value's columns, free
    once attention has read them, in front of the MLP's.
    """
    shift, scale = _vectors(mod, 3, 0, 1)
    attn, hidden = block.attn, ops.norm_modulate(joint, block.norm.norm, rows, scale, shift)
    if hasattr(block, "proj_in"):
        wide, dim = block.proj_in(hidden), joint.shape[-1]
        heads = wide[:, : 3 * dim].unflatten(-1, (3, -1, attn.head_dim)).unbind(1)
        torch.ops.aten.gelu_(wide[:, 3 * dim :], approximate=block.act_mlp.approximate)
        tail = wide[:, 2 * dim :]
    else:
        heads = _project(attn, hidden, ("to_q", "to_k", "to_v"), "to_qkv")
        tail = block.act_mlp(block.proj_mlp(hidden))
    return *_rotated(ops, heads, attn.norm_q, attn.norm_k, rope), tail


def single_after(block: Any, ops: Ops, joint: Tensor, attended: Tensor, tail: Tensor, mod: Tensor, rows: Any) -> Tensor:
    """The rest of FluxSingleTransformerBlock.forward. `tail` comes from `single_before` and may be overwritten."""
    (gate,) = _vectors(mod, 3, 2)
    if hasattr(block, "proj_in"):
        tail[:, : attended.shape[-1]] = attended
        hidden = tail
    else:
        hidden = torch.cat((attended, tail), dim=-1)
    return _clip_half(ops.gate_add(joint, rows, gate, block.proj_out(hidden)))


def _vectors(mod: Tensor, count: int, *which: int) -> tuple[Tensor, ...]:
    """Some of the `count` vectors (R, D) that lie side by side in `mod`.

    Order: shift, scale, gate of attention, then of the MLP; in a double block the image's, then the text's.
    """
    vectors = mod.chunk(count, dim=-1)
    return tuple(vectors[index] for index in which)


def _project(attn: Any, hidden: Tensor, names: tuple[str, str, str], fused: str) -> Heads:
    """Query, key and value through whichever linears the module carries."""
    if attn.fused_projections:
        query, key, value = getattr(attn, fused)(hidden).chunk(3, dim=-1)
    else:
        query, key, value = (getattr(attn, name)(hidden) for name in names)
    return tuple(x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))


def _rotated(ops: Ops, heads: Heads, query_norm: Any, key_norm: Any, rope: Tensor) -> Heads:
    query, key, value = heads
    return ops.norm_rotate(query, query_norm, rope), ops.norm_rotate(key, key_norm, rope), value


def _clip_half(x: Tensor) -> Tensor:
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
