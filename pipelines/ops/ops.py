"""The small operations between the matrix products of a transformer block, as one replaceable set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from pipelines.ops.attention import runs


class TokenRows:
    """Which row (picture) each token of a packed list belongs to, in the two forms that implementations take."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self._lengths, self._device = lengths, device
        groups: list[tuple[int, int, int, int]] = []
        row = token = 0
        for count, length in runs(lengths):
            groups.append((row, token, count, length))
            row, token = row + count, token + count * length
        self.groups = tuple(groups)
        """Neighbours of equal length as (first row, first token, rows, tokens a row)."""

    @cached_property
    def index(self) -> Tensor:
        """(S,) int32 on the device: each token's row."""
        rows = torch.arange(len(self._lengths), dtype=torch.int32)
        return rows.repeat_interleave(torch.tensor(self._lengths)).to(self._device)


@dataclass(frozen=True)
class Ops:
    """One implementation. S tokens of width D, R rows; all but `rope` in the model's dtype.

    Args:
        rows: takes from `TokenRows` the form that the others are given.
        norm_modulate: (tokens (S, D), norm, rows, scale (R, D), shift (R, D)) -> norm(tokens) * scale + shift.
            `norm` is a LayerNorm without weights; scales come as 1 + scale.
        gate_add: (tokens (S, D), rows, gate (R, D), update (S, D)) -> tokens + gate * update; may overwrite `update`.
        norm_rotate: (x (S, H, d), norm, rope (S, 1, d / 2, 2) float32) -> RMSNorm over d, then neighbouring pairs
            rotated by (cos, sin).
    """

    name: str
    rows: Callable[[TokenRows], Any]
    norm_modulate: Callable[[Tensor, Any, Any, Tensor, Tensor], Tensor]
    gate_add: Callable[[Tensor, Any, Tensor, Tensor], Tensor]
    norm_rotate: Callable[[Tensor, Any, Tensor], Tensor]


Groups = Sequence[tuple[int, int, int, int]]


def _norm_modulate(tokens: Tensor, norm: Any, groups: Groups, scale: Tensor, shift: Tensor) -> Tensor:
    normed: Tensor = norm(tokens)
    for row, start, count, length in groups:
        part = normed[start : start + count * length].unflatten(0, (count, length))
        part.mul_(scale[row : row + count, None]).add_(shift[row : row + count, None])
    return normed


def _gate_add(tokens: Tensor, groups: Groups, gate: Tensor, update: Tensor) -> Tensor:
    for row, start, count, length in groups:
        update[start : start + count * length].unflatten(0, (count, length)).mul_(gate[row : row + count, None])
    return update.add_(tokens)


def _norm_rotate(x: Tensor, norm: Any, rope: Tensor) -> Tensor:
    """As a complex product, in float32 like the stock module and equal to it bit for bit on a CPU."""
    normed: Tensor = norm(x)
    pairs = torch.view_as_complex(normed.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rope)).flatten(-2).to(x.dtype)


REFERENCE = Ops("torch", attrgetter("groups"), _norm_modulate, _gate_add, _norm_rotate)
"""torch, eager. Equal rows are handled by broadcasting, so that nothing the size of the tokens is gathered."""


def _indexed_norm_modulate(tokens: Tensor, norm: Any, index: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    normed: Tensor = norm(tokens)
    return normed * scale[index] + shift[index]


def _indexed_gate_add(tokens: Tensor, index: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    return tokens + gate[index] * update


def _real_norm_rotate(x: Tensor, norm: Any, rope: Tensor) -> Tensor:
    even, odd = norm(x).float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


TRACEABLE = Ops("compiled", attrgetter("index"), _indexed_norm_modulate, _indexed_gate_add, _real_norm_rotate)
"""For torch.compile: no lists of lengths, no complex numbers. Eagerly it would gather the size of the tokens."""
