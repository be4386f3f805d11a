"""Pictures to look at, passed through the transformer once a request: [klein] KV was trained so.

Their tokens see themselves alone and stand at timestep 0, so nothing in them depends on the prompt, on what is drawn or
on the step: a forward over them alone gives the keys and values that every step then attends to.
Source: Flux2KleinKVPipeline, which computes them along with its first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, groupby

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from pipelines.adapters.adapter import Uses
from pipelines.families.flux2.packed import packed_forward
from pipelines.families.layout import PackLayout
from pipelines.ops.attention import Attend
from pipelines.ops.compute import Compute

Seen = tuple[Tensor, ...]
"""(2, M, heads, head_dim) a block, in order: keys, rotated, and values of a request's reference tokens."""


def seen_once(
    transformer: Flux2Transformer2DModel,
    references: Tensor,
    rope: Tensor,
    modulation: Tensor,
    uses: Uses,
    attend: Attend,
) -> Seen:
    """Args: references: (M, in_channels). rope: complex64 (M, 1, head_dim / 2). modulation: (1, 17 D), timestep 0's."""
    seen: list[Tensor] = []

    def kept(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
        seen.append(torch.stack((key, value)))  # a copy: the value is a view of a block's whole projection
        return attend(query, key, value, lengths)

    layout = PackLayout((0,), (len(references),), rope, (uses,) if uses else ())
    no_text = references.new_empty(0, transformer.inner_dim)
    packed_forward(transformer, layout, references, no_text, modulation, Compute(kept))
    return tuple(seen)


def looking(attend: Attend, text_lengths: Sequence[int], seen: Sequence[Seen]) -> Attend:
    """`attend` for one forward over a pack in which pictures also see references, those between their text and image.

    Args: attend: of pictures without. seen: of each picture, empty for none.
    """
    blocks = count()

    def run(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
        block, start, outputs = next(blocks), 0, []
        for pictures in _together(seen):
            stop = start + sum(lengths[picture] for picture in pictures)
            heads = query[start:stop], key[start:stop], value[start:stop]
            if own := seen[pictures[0]]:
                outputs.append(_over(*heads, text_lengths[pictures[0]], own[block]))
            else:
                outputs.append(attend(*heads, [lengths[picture] for picture in pictures]))
            start = stop
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return run


def _together(seen: Sequence[Seen]) -> Iterator[list[int]]:
    """Pictures by index: neighbours without references together, those with references one by one."""
    for has_seen, group in groupby(range(len(seen)), key=lambda picture: bool(seen[picture])):
        pictures = list(group)
        yield from ([picture] for picture in pictures) if has_seen else (pictures,)


def _over(query: Tensor, key: Tensor, value: Tensor, text_length: int, seen: Tensor) -> Tensor:
    """One picture's attention, (S, heads, head_dim) -> (S, heads * head_dim)."""
    keys, values = (
        torch.cat((own[:text_length], kept, own[text_length:])) for own, kept in zip((key, value), seen, strict=True)
    )
    q, k, v = (each[None].transpose(1, 2) for each in (query, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[0]
