"""A pack of pictures shared out over ranks: every rank has a part of each picture's tokens, and, for attention, all
tokens with a part of the heads (DeepSpeed-Ulysses, arXiv:2309.14509)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shares:
    """Which tokens are whose. A length that cannot be divided makes parts that differ by one: nothing is padded.

    Args: text_lengths, image_lengths: of each picture. count: how many ranks.
    """

    text_lengths: tuple[int, ...]
    image_lengths: tuple[int, ...]
    count: int

    def text(self, rank: int) -> tuple[int, ...]:
        """Text tokens of each picture that the rank has."""
        return tuple(len(_part(length, rank, self.count)) for length in self.text_lengths)

    def image(self, rank: int) -> tuple[int, ...]:
        return tuple(len(_part(length, rank, self.count)) for length in self.image_lengths)

    @cached_property
    def joint_totals(self) -> list[int]:
        """Tokens of each rank."""
        return [sum(self.text(rank)) + sum(self.image(rank)) for rank in range(self.count)]

    @cached_property
    def image_totals(self) -> list[int]:
        return [sum(self.image(rank)) for rank in range(self.count)]

    @cached_property
    def is_whole(self) -> bool:
        """Whether every rank gets something of everything."""
        return min(*self.text_lengths, *self.image_lengths) >= self.count

    def text_of(self, text: Tensor, rank: int) -> Tensor:
        """The rank's rows of (sum T, ...)."""
        return _taken(text, self.text_lengths, rank, self.count)

    def image_of(self, image: Tensor, rank: int) -> Tensor:
        """The rank's rows of (sum N, ...)."""
        return _taken(image, self.image_lengths, rank, self.count)

    def joint_of(self, joint: Tensor, rank: int) -> Tensor:
        """The rank's rows of (S, ...) in joint order: each picture's text, then its image."""
        return _taken(joint, pairs(self.text_lengths, self.image_lengths), rank, self.count)


def _part(length: int, rank: int, count: int) -> range:
    return range(length * rank // count, length * (rank + 1) // count)


def _taken(rows: Tensor, lengths: Sequence[int], rank: int, count: int) -> Tensor:
    parts = [
        (rows_of, _part(length, rank, count)) for rows_of, length in zip(rows.split(lengths), lengths, strict=True)
    ]
    return torch.cat([rows_of[part.start : part.stop] for rows_of, part in parts])


def pairs(text_lengths: Sequence[int], image_lengths: Sequence[int]) -> list[int]:
    return [length for pair in zip(text_lengths, image_lengths, strict=True) for length in pair]


@lru_cache(maxsize=64)
def orders(lengths: tuple[int, ...], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows that were taken in parts of these lengths by each rank, one rank's behind the other's: (S,) int64 each,
    where in that list every row stands, and which row stands at every place."""
    rows = torch.arange(sum(lengths), device=device)
    ranked = torch.cat([_taken(rows, lengths, rank, count) for rank in range(count)])
    places = torch.empty_like(ranked).scatter_(0, ranked, rows)
    return places, ranked
