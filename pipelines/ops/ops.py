"""The small operations between the matrix products of a transformer block, as one replaceable set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from pipelines.ops.attention import runs

Heads = tuple[Tensor, Tensor, Tensor]
"""Query, key and value, each (tokens, heads, head_dim)."""

Norms = tuple[Any, Any]
"""The RMSNorms of queries and keys."""


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
        """(S,) int32 on the device: each token's row. Filled there: a copy from the host would wait for the steps."""
        filled = [
            torch.full((length,), row, dtype=torch.int32, device=self._device)
            for row, length in enumerate(self._lengths)
        ]
        return torch.cat(filled)


class Joint(Protocol):
    """How the text and the image tokens of all pictures become one list: each picture's text, then its image."""

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """(sum T,) and (sum N,) int64 on the device: where each text token and each image token stands in it."""

    def join(self, text: Tensor, image: Tensor) -> Tensor:
        """(sum T, ...) and (sum N, ...) -> (S, ...)."""


@dataclass(frozen=True)
class Ops:
    """One implementation. S tokens of width D, R rows; all but `rope` in the model's dtype.

    Args:
        rows: takes from `TokenRows` the form that the others are given.
        places: takes from `Joint` the form that `joint_heads` is given.
        norm_modulate: (tokens (S, D), norm, rows, scale (R, D), shift (R, D), linear) -> norm(tokens) * scale + shift,
            in a form that `linear`, which reads it, takes. `norm` is a LayerNorm without weights; scales come as
            1 + scale.
        gate_add: (tokens (S, D), rows, gate (R, D), update (S, D)) -> tokens + gate * update; may overwrite `update`.
        norm_rotate: (heads, norms, rope (S, 1, d / 2, 2) float32) -> heads. Queries and keys: RMSNorm over d, then
            neighbouring pairs rotated by (cos, sin).
        joint_heads: (text heads, image heads, text norms, image norms, (text rope, image rope), places) -> the same of
            both, in joint order.
        join_gelu: (attended (S, D), wide (S, D + F), linear) -> `attended` beside the GELU (by tanh) of the last F
            columns of `wide`, in a form that `linear`, which reads it, takes; may overwrite `wide`.
    """

    name: str
    rows: Callable[[TokenRows], Any]
    places: Callable[[Joint], Any]
    norm_modulate: Callable[[Tensor, Any, Any, Tensor, Tensor, Any], Any]
    gate_add: Callable[[Tensor, Any, Tensor, Tensor], Tensor]
    norm_rotate: Callable[[Heads, Norms, Tensor], Heads]
    joint_heads: Callable[[Heads, Heads, Norms, Norms, tuple[Tensor, Tensor], Any], Heads]
    join_gelu: Callable[[Tensor, Tensor, Any], Any]


Groups = Sequence[tuple[int, int, int, int]]


def _norm_modulate(tokens: Tensor, norm: Any, groups: Groups, scale: Tensor, shift: Tensor, linear: Any) -> Tensor:
    normed: Tensor = norm(tokens)
    for row, start, count, length in groups:
        part = normed[start : start + count * length].unflatten(0, (count, length))
        part.mul_(scale[row : row + count, None]).add_(shift[row : row + count, None])
    return normed


def _gate_add(tokens: Tensor, groups: Groups, gate: Tensor, update: Tensor) -> Tensor:
    for row, start, count, length in groups:
        update[start : start + count * length].unflatten(0, (count, length)).mul_(gate[row : row + count, None])
    return update.add_(tokens)


def _rotated(x: Tensor, norm: Any, rope: Tensor) -> Tensor:
    """As a complex product, in float32 like the stock module and equal to it bit for bit on a CPU."""
    normed: Tensor = norm(x)
    pairs = torch.view_as_complex(normed.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rope)).flatten(-2).to(x.dtype)


def _norm_rotate(heads: Heads, norms: Norms, rope: Tensor) -> Heads:
    query, key, value = heads
    return _rotated(query, norms[0], rope), _rotated(key, norms[1], rope), value


def _joint_heads(
    texts: Heads,
    images: Heads,
    text_norms: Norms,
    image_norms: Norms,
    ropes: tuple[Tensor, Tensor],
    join: Callable[[Tensor, Tensor], Tensor],
) -> Heads:
    texts, images = _norm_rotate(texts, text_norms, ropes[0]), _norm_rotate(images, image_norms, ropes[1])
    query, key, value = (join(text, image) for text, image in zip(texts, images, strict=True))
    return query, key, value


def _join_gelu(attended: Tensor, wide: Tensor, linear: Any) -> Tensor:
    width = attended.shape[-1]
    wide[:, :width] = attended
    torch.ops.aten.gelu_(wide[:, width:], approximate="tanh")
    return wide


REFERENCE = Ops(
    "torch",
    attrgetter("groups"),
    attrgetter("join"),
    _norm_modulate,
    _gate_add,
    _norm_rotate,
    _joint_heads,
    _join_gelu,
)
"""torch, eager. Equal rows are handled by broadcasting, so that nothing the size of the tokens is gathered."""


def _indexed_norm_modulate(
    tokens: Tensor, norm: Any, index: Tensor, scale: Tensor, shift: Tensor, linear: Any
) -> Tensor:
    normed: Tensor = norm(tokens)
    return normed * scale[index] + shift[index]


def _indexed_gate_add(tokens: Tensor, index: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    return tokens + gate[index] * update


def _really_rotated(x: Tensor, norm: Any, rope: Tensor) -> Tensor:
    even, odd = norm(x).float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rope.unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def _real_norm_rotate(heads: Heads, norms: Norms, rope: Tensor) -> Heads:
    query, key, value = heads
    return _really_rotated(query, norms[0], rope), _really_rotated(key, norms[1], rope), value


def _indexed_joint_heads(
    texts: Heads,
    images: Heads,
    text_norms: Norms,
    image_norms: Norms,
    ropes: tuple[Tensor, Tensor],
    places: tuple[Tensor, Tensor],
) -> Heads:
    texts, images = _real_norm_rotate(texts, text_norms, ropes[0]), _real_norm_rotate(images, image_norms, ropes[1])

    def placed(text: Tensor, image: Tensor) -> Tensor:
        joint = text.new_empty(text.shape[0] + image.shape[0], *text.shape[1:])
        return joint.index_copy(0, places[0], text).index_copy(0, places[1], image)

    query, key, value = (placed(text, image) for text, image in zip(texts, images, strict=True))
    return query, key, value


def _traceable_join_gelu(attended: Tensor, wide: Tensor, linear: Any) -> Tensor:
    activated = torch.nn.functional.gelu(wide[:, attended.shape[-1] :], approximate="tanh")
    return torch.cat((attended, activated), dim=-1)


TRACEABLE = Ops(
    "compiled",
    attrgetter("index"),
    attrgetter("places"),
    _indexed_norm_modulate,
    _indexed_gate_add,
    _real_norm_rotate,
    _indexed_joint_heads,
    _traceable_join_gelu,
)
"""For torch.compile: no lists of lengths, no complex numbers. Eagerly it would gather the size of the tokens."""
