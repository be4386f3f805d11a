"""First-block caching: a picture whose first block hardly changed since its last full step skips the other blocks.

The first double block always runs. What it adds to a picture's image tokens is compared with what it added in that
picture's last full step; if the relative change of the mean magnitude is below a threshold, what the other blocks
added then is added again. The rule and its threshold are First Block Cache's (github.com/chengzeyi/ParaAttention,
README "First Block Cache"; `diffusers.hooks.apply_first_block_cache` is the same, and the oracle of our test).

Here every picture of a step decides for itself, from its own tokens alone, and those that go on form a smaller pack.
It changes pixels: only requests that ask for it (`acceleration: high`) carry a cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from pipelines.families.flux1.packed import first_block, head, other_blocks
from pipelines.families.flux1.residuals import Additions, Residuals
from pipelines.families.layout import PackLayout
from pipelines.ops.compute import Compute


class HitRule(Protocol):
    """Decides which steps of a picture skip all blocks but the first."""

    def may_hit(self, step: int, num_steps: int, hits_in_row: int) -> bool:
        """Whether step `step` of `num_steps` may skip after `hits_in_row` skipped ones. Reads no tensors."""

    def is_hit(self, step: int, change: float) -> bool:
        """Whether a step skips, its first block changed by `change` relative to the last full step. Not for NaN."""


@dataclass(frozen=True, slots=True)
class FirstBlockRule:
    """The rule in use.

    Args:
        threshold: relative change up to which a step skips; 0.12 is what ParaAttention pairs with fp8 on FLUX.1-dev.
        warm_up: share of the steps, at the start, that are always computed: they settle the composition.
        max_hits: steps skipped one after another, so that errors do not add up. The last step never skips.
    """

    threshold: float = 0.12
    warm_up: float = 0.2
    max_hits: int = 3

    def may_hit(self, step: int, num_steps: int, hits_in_row: int) -> bool:
        return math.ceil(self.warm_up * num_steps) <= step < num_steps - 1 and hits_in_row < self.max_hits

    def is_hit(self, step: int, change: float) -> bool:
        return change <= self.threshold


@dataclass(slots=True)
class StepCache:
    """One picture's memory of its last full step: two tensors of its image tokens, (N, D) in the model's dtype.

    Args:
        first: what the first block added.
        others: what all other blocks added.
        hits_in_row: steps skipped since.
    """

    first: Tensor | None = None
    others: Tensor | None = None
    hits_in_row: int = 0


@dataclass(frozen=True, slots=True)
class CachedRow:
    """A picture of the pack that may skip: its cache, its next step, and how many steps it has."""

    cache: StepCache
    step: int
    num_steps: int


def cached_forward(
    transformer: FluxTransformer2DModel,
    layout: PackLayout,
    latents: Tensor,
    text: Tensor,
    modulation: Tensor,
    compute: Compute,
    rows: Sequence[CachedRow | None],
    rule: HitRule,
    residuals: Sequence[Residuals] = (),
) -> tuple[Tensor, tuple[bool, ...]]:
    """`packed_forward` in which the pictures with a cache may skip all blocks but the first.

    Args: as there; rows: one a picture, None for those that are always computed in full, as those
        must be that `residuals` belong to.
    Returns: the velocity (sum N, out_channels), and for every picture whether it skipped. Caches change at the very
        end: a step that raises leaves them as they were.
    """
    additions = Additions(residuals, layout, latents.device) if residuals else None
    entered, text, image = first_block(transformer, layout, latents, text, modulation, compute, additions)
    befores, images = entered.split(layout.image_lengths), image.split(layout.image_lengths)
    # Row by row, so that a cache holds its own rows' memory and not the whole pack's.
    firsts = [None if row is None else i - b for row, i, b in zip(rows, images, befores, strict=True)]
    hits = _decide(rows, firsts, rule)
    outputs = _run_others(transformer, layout, text, image, modulation, compute, hits, residuals)
    kept: list[tuple[StepCache, Tensor, Tensor]] = []
    for index, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        if row is None or first is None:
            continue
        if hits[index]:
            assert row.cache.others is not None
            outputs[index] = images[index] + row.cache.others
        else:
            kept.append((row.cache, first, outputs[index] - images[index]))
    velocity = head(transformer, layout, torch.cat(outputs), modulation, compute)
    for row, is_hit in zip(rows, hits, strict=True):
        if row is not None:
            row.cache.hits_in_row = row.cache.hits_in_row + 1 if is_hit else 0
    for cache, first, others in kept:
        cache.first, cache.others = first, others
    return velocity, hits


def _decide(rows: Sequence[CachedRow | None], firsts: Sequence[Tensor | None], rule: HitRule) -> tuple[bool, ...]:
    """Which pictures skip. Every change is reduced over its own tokens; all come to the host in one copy."""
    changes: dict[int, Tensor] = {}
    for index, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        if row is None or first is None or row.cache.first is None:
            continue
        if rule.may_hit(row.step, row.num_steps, row.cache.hits_in_row):
            changes[index] = _relative_change(first, row.cache.first)
    if not changes:
        return (False,) * len(rows)
    measured = dict(zip(changes, torch.stack(list(changes.values())).tolist(), strict=True))
    return tuple(
        row is not None and index in measured and rule.is_hit(row.step, measured[index])
        for index, row in enumerate(rows)
    )


def _relative_change(now: Tensor, then: Tensor) -> Tensor:
    """mean |now - then| / mean |then| as a float32 scalar on the device."""
    changed = torch.linalg.vector_norm(now - then, ord=1, dtype=torch.float32)
    relative: Tensor = changed / torch.linalg.vector_norm(then, ord=1, dtype=torch.float32)
    return relative


def _run_others(
    transformer: FluxTransformer2DModel,
    layout: PackLayout,
    text: Tensor,
    image: Tensor,
    modulation: Tensor,
    compute: Compute,
    hits: Sequence[bool],
    residuals: Sequence[Residuals],
) -> list[Tensor]:
    """Image tokens of every picture after all blocks; those that skip come back as the first block left them."""
    images = list(image.split(layout.image_lengths))
    going_on = [index for index, is_hit in enumerate(hits) if not is_hit]
    if not going_on:
        return images
    if len(going_on) < len(hits):
        texts = text.split(layout.text_lengths)
        text = torch.cat([texts[index] for index in going_on])
        image = torch.cat([images[index] for index in going_on])
        modulation = torch.stack([modulation[index] for index in going_on])
        layout = layout.select(going_on)
        residuals = [each.among(going_on) for each in residuals]
    additions = Additions(residuals, layout, text.device) if residuals else None
    output = other_blocks(transformer, layout, text, image, modulation, compute, additions)
    for index, part in zip(going_on, output.split(layout.image_lengths), strict=True):
        images[index] = part
    return images
