"""One FLUX transformer forward over any mix of picture sizes, timesteps, guidance values and prompts.

All tokens of all pictures stand in one list. Linear layers see it once, modulation differs by picture, attention
is block-diagonal. The modules are diffusers' own `FluxTransformer2DModel`, called and never copied, so LoRA layers
and quantised linears take part. Equal to separate stock forwards: see tests/pipelines/test_packed.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from pipelines.attention import Attend, runs


@dataclass(frozen=True)
class PackLayout:
    """How the pictures of one step lie in the packed list, in order.

    Args:
        text_lengths, image_lengths: tokens of each picture.
        rope: complex64 (S, 1, head_dim / 2), the rotations of all tokens in joint order: each picture's text,
            then its image. S is the sum of all lengths.
    """

    text_lengths: tuple[int, ...]
    image_lengths: tuple[int, ...]
    rope: Tensor

    @cached_property
    def joint_lengths(self) -> tuple[int, ...]:
        return tuple(t + n for t, n in zip(self.text_lengths, self.image_lengths, strict=True))

    @cached_property
    def text_rows(self) -> RowVectors:
        return RowVectors(self.text_lengths)

    @cached_property
    def image_rows(self) -> RowVectors:
        return RowVectors(self.image_lengths)

    @cached_property
    def joint_rows(self) -> RowVectors:
        return RowVectors(self.joint_lengths)

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """(sum T, ...) and (sum N, ...) -> (S, ...) in joint order."""
        if len(self.text_lengths) == 1:
            return torch.cat((text, image))
        texts, images = text.split(self.text_lengths), image.split(self.image_lengths)
        return torch.cat([part for pair in zip(texts, images, strict=True) for part in pair])

    def part(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `join`; both results are contiguous."""
        lengths = [length for pair in zip(self.text_lengths, self.image_lengths, strict=True) for length in pair]
        parts = joint.split(lengths)
        if len(parts) == 2:
            return parts[0], parts[1]
        return torch.cat(parts[0::2]), torch.cat(parts[1::2])


class RowVectors:
    """One vector a picture, applied to all of that picture's tokens.

    Neighbours of equal length are handled together by broadcasting, so nothing the size of the tokens is gathered.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._groups: list[tuple[int, int, int, int]] = []
        row = token = 0
        for count, length in runs(lengths):
            self._groups.append((row, token, count, length))
            row, token = row + count, token + count * length

    def modulate(self, tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """tokens * scale + shift, in place on `tokens` (S, D); scale and shift are (R, D)."""
        for row, start, count, length in self._groups:
            part = tokens[start : start + count * length].unflatten(0, (count, length))
            part.mul_(scale[row : row + count, None]).add_(shift[row : row + count, None])
        return tokens

    def gate(self, tokens: Tensor, gate: Tensor, update: Tensor) -> Tensor:
        """tokens + gate * update, in place on `update`; gate is (R, D) or (R, 1)."""
        for row, start, count, length in self._groups:
            update[start : start + count * length].unflatten(0, (count, length)).mul_(gate[row : row + count, None])
        return update.add_(tokens)


def modulation_width(transformer: FluxTransformer2DModel) -> int:
    """Values a picture needs for one step: the outputs of all AdaLN linears."""
    return sum(linear.out_features for linear in _modulation_linears(transformer))


def modulation_rows(transformer: FluxTransformer2DModel, temb: Tensor) -> Tensor:
    """The AdaLN vectors of every block for conditioning `temb` (R, D) -> (R, modulation_width).

    Scales are stored as 1 + scale.
    """
    # Every AdaLN applies the same SiLU to the same vector.
    conditioning = nn.functional.silu(temb)
    rows = torch.cat([linear(conditioning) for linear in _modulation_linears(transformer)], dim=-1)
    dim = temb.shape[-1]
    for start in _scale_starts(transformer, dim):
        rows[:, start : start + dim] += 1
    return rows


def _modulation_linears(transformer: FluxTransformer2DModel) -> list[nn.Linear]:
    double = [norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    single = [block.norm.linear for block in transformer.single_transformer_blocks]
    return [*double, *single, transformer.norm_out.linear]


def _scale_starts(transformer: FluxTransformer2DModel, dim: int) -> list[int]:
    """Where scales begin. AdaLayerNormZero: shift, scale, gate, twice; Single: shift, scale, gate; Continuous: scale,
    shift."""
    doubles, singles = 2 * len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    first_single = doubles * 6 * dim
    in_doubles = [block * 6 * dim + offset * dim for block in range(doubles) for offset in (1, 4)]
    in_singles = [first_single + block * 3 * dim + dim for block in range(singles)]
    return [*in_doubles, *in_singles, first_single + singles * 3 * dim]


def packed_forward(
    transformer: FluxTransformer2DModel,
    layout: PackLayout,
    latents: Tensor,
    text: Tensor,
    modulation: Tensor,
    attend: Attend,
) -> Tensor:
    """Predict the velocity of every picture.

    Args:
        latents: (sum N, in_channels), all pictures' packed latents.
        text: (sum T, D), prompt embeddings after the context embedder.
        modulation: (R, modulation_width), from `modulation_rows`, one row a picture.
    Returns: (sum N, out_channels).
    """
    dim = text.shape[-1]
    image = transformer.x_embedder(latents)
    offset = 0
    for block in transformer.transformer_blocks:
        image_mod = modulation[:, offset : offset + 6 * dim].chunk(6, dim=-1)
        text_mod = modulation[:, offset + 6 * dim : offset + 12 * dim].chunk(6, dim=-1)
        text, image = _double_block(block, layout, text, image, text_mod, image_mod, attend)
        offset += 12 * dim
    joint = layout.join(text, image)
    for block in transformer.single_transformer_blocks:
        joint_mod = modulation[:, offset : offset + 3 * dim].chunk(3, dim=-1)
        joint = _single_block(block, layout, joint, joint_mod, attend)
        offset += 3 * dim
    _, image = layout.part(joint)
    scale, shift = modulation[:, offset:].chunk(2, dim=-1)
    normed = layout.image_rows.modulate(transformer.norm_out.norm(image), scale, shift)
    output: Tensor = transformer.proj_out(normed)
    return output


def _double_block(
    block: Any,
    layout: PackLayout,
    text: Tensor,
    image: Tensor,
    text_mod: tuple[Tensor, ...],
    image_mod: tuple[Tensor, ...],
    attend: Attend,
) -> tuple[Tensor, Tensor]:
    """FluxTransformerBlock.forward over packed tokens."""
    attn, texts, images = block.attn, layout.text_rows, layout.image_rows
    normed_image = images.modulate(block.norm1.norm(image), image_mod[1], image_mod[0])
    normed_text = texts.modulate(block.norm1_context.norm(text), text_mod[1], text_mod[0])
    image_qk, image_v = _project(attn, normed_image, "to_q", "to_k", "to_v", "to_qkv")
    text_qk, text_v = _project(attn, normed_text, "add_q_proj", "add_k_proj", "add_v_proj", "to_added_qkv")
    query = layout.join(attn.norm_added_q(text_qk[0]), attn.norm_q(image_qk[0]))
    key = layout.join(attn.norm_added_k(text_qk[1]), attn.norm_k(image_qk[1]))
    attended = attend(
        rotate(query, layout.rope), rotate(key, layout.rope), layout.join(text_v, image_v), layout.joint_lengths
    )
    text_attended, image_attended = layout.part(attended)
    image = images.gate(image, image_mod[2], attn.to_out[1](attn.to_out[0](image_attended)))
    text = texts.gate(text, text_mod[2], attn.to_add_out(text_attended))
    image_hidden = images.modulate(block.norm2(image), image_mod[4], image_mod[3])
    text_hidden = texts.modulate(block.norm2_context(text), text_mod[4], text_mod[3])
    image = images.gate(image, image_mod[5], block.ff(image_hidden))
    text = texts.gate(text, text_mod[5], block.ff_context(text_hidden))
    return _clip_half(text), image


def _single_block(block: Any, layout: PackLayout, joint: Tensor, mod: tuple[Tensor, ...], attend: Attend) -> Tensor:
    """FluxSingleTransformerBlock.forward over packed tokens in joint order."""
    normed = layout.joint_rows.modulate(block.norm.norm(joint), mod[1], mod[0])
    (query, key), value = _project(block.attn, normed, "to_q", "to_k", "to_v", "to_qkv")
    query, key = block.attn.norm_q(query), block.attn.norm_k(key)
    attended = attend(rotate(query, layout.rope), rotate(key, layout.rope), value, layout.joint_lengths)
    hidden = torch.cat((attended, block.act_mlp(block.proj_mlp(normed))), dim=-1)
    return _clip_half(layout.joint_rows.gate(joint, mod[2], block.proj_out(hidden)))


def _project(
    attn: Any, hidden: Tensor, query: str, key: str, value: str, fused: str
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """((query, key), value), each (tokens, heads, head_dim), through whichever linears the module carries."""
    if attn.fused_projections:
        q, k, v = getattr(attn, fused)(hidden).chunk(3, dim=-1)
    else:
        q, k, v = (getattr(attn, name)(hidden) for name in (query, key, value))
    q, k, v = (x.unflatten(-1, (-1, attn.head_dim)) for x in (q, k, v))
    return (q, k), v


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Rotary embedding as a complex product, in float32 like the stock module and equal to it bit for bit on a CPU.

    Args: x: (S, heads, head_dim). rope: complex64 (S, 1, head_dim / 2).
    """
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


def _clip_half(x: Tensor) -> Tensor:
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x
