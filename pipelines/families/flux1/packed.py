"""One FLUX.1 transformer forward over any mix of picture sizes, timesteps, guidance values and prompts.

All tokens of all pictures stand in one list. Linear layers see it once, modulation differs by picture, attention
is block-diagonal. The modules are diffusers' own `FluxTransformer2DModel`, called and never copied, so quantised
linears take part, and with `pipelines.adapters` another LoRA for every picture. Equal to separate stock forwards: see
tests/pipelines/families/flux1/test_packed.py.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor, nn

from pipelines.adapters.binding import inside
from pipelines.families.double_block import double_block
from pipelines.families.flux1.blocks import single_after, single_before
from pipelines.families.flux1.residuals import Additions
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute

Network: TypeAlias = FluxTransformer2DModel | FluxControlNetModel
"""Both are stacks of the same blocks; a ControlNet has no last AdaLN and no output."""


def attention_shape(transformer: FluxTransformer2DModel) -> tuple[int, int]:
    """Heads, and values a head."""
    return int(transformer.config.num_attention_heads), int(transformer.config.attention_head_dim)


def modulation_width(transformer: FluxTransformer2DModel) -> int:
    """Values a picture needs for one step: the outputs of all AdaLN linears."""
    return sum(linear.out_features for linear in _modulation_linears(transformer))


def modulation_rows(transformer: Network, temb: Tensor) -> Tensor:
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


def _modulation_linears(transformer: Network) -> list[nn.Linear]:
    double = [norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    single = [block.norm.linear for block in transformer.single_transformer_blocks]
    return [*double, *single, *([transformer.norm_out.linear] if hasattr(transformer, "norm_out") else ())]


def _scale_starts(transformer: Network, dim: int) -> list[int]:
    """Where scales begin. AdaLayerNormZero: shift, scale, gate, twice; Single: shift, scale, gate; Continuous: scale,
    shift."""
    doubles, singles = 2 * len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
    first_single = doubles * 6 * dim
    in_doubles = [block * 6 * dim + offset * dim for block in range(doubles) for offset in (1, 4)]
    in_singles = [first_single + block * 3 * dim + dim for block in range(singles)]
    at_the_end = [first_single + singles * 3 * dim] if hasattr(transformer, "norm_out") else []
    return [*in_doubles, *in_singles, *at_the_end]


def packed_forward(
    transformer: FluxTransformer2DModel,
    layout: PackLayout,
    latents: Tensor,
    text: Tensor,
    modulation: Tensor,
    compute: Compute,
    additions: Additions | None = None,
) -> Tensor:
    """Predict the velocity of every picture.

    Args:
        latents: (sum N, in_channels), all pictures' packed latents.
        text: (sum T, D), prompt embeddings after the context embedder.
        modulation: (R, modulation_width), from `modulation_rows`, one row a picture.
        additions: what ControlNets add.
    Returns: (sum N, out_channels).
    """
    _, text, image = first_block(transformer, layout, latents, text, modulation, compute, additions)
    image = other_blocks(transformer, layout, text, image, modulation, compute, additions)
    return head(transformer, layout, image, modulation, compute)


@inside
def first_block(
    transformer: FluxTransformer2DModel,
    layout: PackLayout,
    latents: Tensor,
    text: Tensor,
    modulation: Tensor,
    compute: Compute,
    additions: Additions | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Embed and run the first double block. Returns: image tokens before it (sum N, D); text and image after it."""
    entered = transformer.x_embedder(latents)
    mod = modulation[:, : 12 * text.shape[-1]]
    text, image = double_block(transformer.transformer_blocks[0], layout, text, entered, mod, compute)
    if additions is not None:
        image = additions.after_double(image, 0, len(transformer.transformer_blocks))
    return entered, text, image


@inside
def other_blocks(
    transformer: FluxTransformer2DModel,
    layout: PackLayout,
    text: Tensor,
    image: Tensor,
    modulation: Tensor,
    compute: Compute,
    additions: Additions | None = None,
) -> Tensor:
    """Every block after the first, over its results. Returns: image tokens (sum N, D)."""
    dim = text.shape[-1]
    offset = 12 * dim
    doubles, singles = transformer.transformer_blocks, transformer.single_transformer_blocks
    for index, block in enumerate(list(doubles)[1:], 1):
        text, image = double_block(block, layout, text, image, modulation[:, offset : offset + 12 * dim], compute)
        if additions is not None:
            image = additions.after_double(image, index, len(doubles))
        offset += 12 * dim
    joint = layout.join(text, image)
    for index, block in enumerate(singles):
        joint = _single_block(block, layout, joint, modulation[:, offset : offset + 3 * dim], compute)
        if additions is not None:
            joint = additions.after_single(joint, index, len(singles))
        offset += 3 * dim
    return layout.part(joint)[1]


def net_blocks(
    net: FluxControlNetModel, layout: PackLayout, text: Tensor, image: Tensor, modulation: Tensor, compute: Compute
) -> tuple[list[Tensor], list[Tensor]]:
    """A ControlNet's blocks over embedded tokens. Returns: image tokens (sum N, D) after each, double then single."""
    dim, offset = text.shape[-1], 0
    doubles, singles = [], []
    for block in net.transformer_blocks:
        text, image = double_block(block, layout, text, image, modulation[:, offset : offset + 12 * dim], compute)
        doubles.append(image)
        offset += 12 * dim
    joint = layout.join(text, image)
    for block in net.single_transformer_blocks:
        joint = _single_block(block, layout, joint, modulation[:, offset : offset + 3 * dim], compute)
        singles.append(layout.part(joint)[1])
        offset += 3 * dim
    return doubles, singles


@inside
def head(
    transformer: FluxTransformer2DModel, layout: PackLayout, image: Tensor, modulation: Tensor, compute: Compute
) -> Tensor:
    """Image tokens (sum N, D) after all blocks -> velocity (sum N, out_channels)."""
    scale, shift = modulation[:, -2 * image.shape[-1] :].chunk(2, dim=-1)
    rows = compute.ops.rows(layout.image_rows)
    normed = compute.ops.norm_modulate(image, transformer.norm_out.norm, rows, scale, shift, transformer.proj_out)
    output: Tensor = transformer.proj_out(normed)
    return output


def _single_block(block: Any, layout: PackLayout, joint: Tensor, mod: Tensor, compute: Compute) -> Tensor:
    ops, rows = compute.ops, compute.ops.rows(layout.joint_rows)
    query, key, value, tail = compute.region(single_before)(block, ops, joint, mod, rows, layout.ropes[2])
    attended = compute.attend(query, key, value, layout.joint_lengths)
    result: Tensor = compute.region(single_after)(block, ops, joint, attended, tail, mod, rows)
    return result
