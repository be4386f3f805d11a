"""The block that FLUX.1 and FLUX.2 begin with, over packed tokens: text and image each have weights of their own, and
meet in attention. Split into the parts before and after it.

`block` is diffusers' own module, called and never copied; `mod` holds its AdaLN vectors, one row a picture, with scales
as 1 + scale. `rows` are what `ops.rows` made of the pack's `TokenRows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute
from pipelines.ops.ops import Heads, Ops


def double_block(
    block: Any, layout: PackLayout, text: Tensor, image: Tensor, mod: Tensor, compute: Compute
) -> tuple[Tensor, Tensor]:
    ops = compute.ops
    rows, places = (ops.rows(layout.text_rows), ops.rows(layout.image_rows)), ops.places(layout)
    before = compute.region(double_before)
    query, key, value = before(block, ops, text, image, mod, *rows, layout.ropes[:2], places)
    attended = layout.part(compute.attend(query, key, value, layout.joint_lengths))
    text, image = compute.region(double_after)(block, ops, text, image, *attended, mod, *rows)
    return text, image


def double_before(
    block: Any,
    ops: Ops,
    text: Tensor,
    image: Tensor,
    mod: Tensor,
    text_rows: Any,
    image_rows: Any,
    ropes: tuple[Tensor, Tensor],
    places: Any,
) -> Heads:
    """(Flux|Flux2)TransformerBlock.forward up to attention -> query, key, value of all tokens, in joint order."""
    attn = block.attn
    image_shift, image_scale, text_shift, text_scale = vectors(mod, 12, 0, 1, 6, 7)
    image_reader, text_reader = first(attn, "to_q", "to_qkv"), first(attn, "add_q_proj", "to_added_qkv")
    image = ops.norm_modulate(image, _norm(block.norm1), image_rows, image_scale, image_shift, image_reader)
    text = ops.norm_modulate(text, _norm(block.norm1_context), text_rows, text_scale, text_shift, text_reader)
    text_heads = project(attn, text, ("add_q_proj", "add_k_proj", "add_v_proj"), "to_added_qkv")
    image_heads = project(attn, image, ("to_q", "to_k", "to_v"), "to_qkv")
    text_norms, image_norms = (attn.norm_added_q, attn.norm_added_k), (attn.norm_q, attn.norm_k)
    return ops.joint_heads(text_heads, image_heads, text_norms, image_norms, ropes, places)


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
    """The rest of (Flux|Flux2)TransformerBlock.forward -> (text, image)."""
    attn = block.attn
    image_gate, image_shift, image_scale, image_mlp_gate = vectors(mod, 12, 2, 3, 4, 5)
    text_gate, text_shift, text_scale, text_mlp_gate = vectors(mod, 12, 8, 9, 10, 11)
    image = ops.gate_add(image, image_rows, image_gate, attn.to_out[1](attn.to_out[0](image_attended)))
    text = ops.gate_add(text, text_rows, text_gate, attn.to_add_out(text_attended))
    image_reader, text_reader = _mlp_first(block.ff), _mlp_first(block.ff_context)
    image_hidden = ops.norm_modulate(image, block.norm2, image_rows, image_scale, image_shift, image_reader)
    text_hidden = ops.norm_modulate(text, block.norm2_context, text_rows, text_scale, text_shift, text_reader)
    image = ops.gate_add(image, image_rows, image_mlp_gate, block.ff(image_hidden))
    text = ops.gate_add(text, text_rows, text_mlp_gate, block.ff_context(text_hidden))
    return clip_half(text), image


def _norm(norm: Any) -> Any:
    """The LayerNorm itself: FLUX.1 keeps it beside the linear of its block's modulation, FLUX.2 has one for all."""
    return getattr(norm, "norm", norm)


def vectors(mod: Tensor, count: int, *which: int) -> tuple[Tensor, ...]:
    """Some of the `count` vectors (R, D) that lie side by side in `mod`.

    Order: shift, scale, gate of attention, then of the MLP; in a double block the image's, then the text's.
    """
    vectors = mod.chunk(count, dim=-1)
    return tuple(vectors[index] for index in which)


def first(attn: Any, name: str, fused: str) -> Any:
    """The linear that reads an attention's input first; those beside it are of its kind."""
    return getattr(attn, fused if attn.fused_projections else name)


def _mlp_first(mlp: Any) -> Any:
    """The linear that reads an MLP's input: FLUX.1's lies inside its activation, FLUX.2's in front of it."""
    return mlp.linear_in if hasattr(mlp, "linear_in") else mlp.net[0].proj


def project(attn: Any, hidden: Any, names: tuple[str, str, str], fused: str) -> Heads:
    """Query, key and value through whichever linears the module carries."""
    if attn.fused_projections:
        query, key, value = getattr(attn, fused)(hidden).chunk(3, dim=-1)
    else:
        query, key, value = (getattr(attn, name)(hidden) for name in names)
    return tuple(x.unflatten(-1, (-1, attn.head_dim)) for x in (query, key, value))


def clip_half(x: Tensor) -> Tensor:
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
