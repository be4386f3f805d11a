"""How the pictures of one step lie side by side: text, drawn tokens and references, each by itself and together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from pipelines.ops.ops import TokenRows

Mode = Literal["txt", "image", "image_cond"]
"""A kind of token, by the name that diffusers' modules have for it."""
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Layout:
    """How the entries of one step lie in the packed list, in order.

    Args:
        lengths: tokens of each entry, by mode; 0 where it has none.
        rope: complex64 (S, 1, head_dim / 2), the rotations of all tokens in joint order: each entry's text, its drawn
            tokens, its references. S is the sum of all lengths.
    """

    lengths: tuple[tuple[int, int, int], ...]
    rope: Tensor

    @cached_property
    def joint_lengths(self) -> tuple[int, ...]:
        return tuple(map(sum, self.lengths))

    @cached_property
    def segments(self) -> tuple[int, ...]:
        """Tokens of every entry's modes, in joint order."""
        return tuple(length for entry in self.lengths for length in entry)

    @cached_property
    def joint_rows(self) -> TokenRows:
        """One row for every segment that is not empty: each mode of an entry is modulated by itself."""
        return TokenRows([length for length in self.segments if length], self.rope.device)

    @cached_property
    def joint_rope(self) -> Tensor:
        """(cos, sin) of all tokens: float32 (S, 1, head_dim / 2, 2)."""
        return torch.view_as_real(self.rope)

    def of(self, mode: Mode) -> tuple[int, ...]:
        """The lengths of one mode, of those entries that have it."""
        at = MODES.index(mode)
        return tuple(entry[at] for entry in self.lengths if entry[at])

    def ropes(self, mode: Mode) -> Tensor:
        """Of the tokens of one mode."""
        return torch.cat(self.joint_rope.split(self.segments)[MODES.index(mode) :: len(MODES)])

    def rows_with(self, mode: Mode, device_rows: Tensor) -> Tensor:
        """Of (R, ...), one an entry, those whose entry has the mode."""
        at = MODES.index(mode)
        held = [index for index, entry in enumerate(self.lengths) if entry[at]]
        return device_rows if len(held) == len(self.lengths) else device_rows[held]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The tokens of every mode -> (S, ...) in joint order."""
        split = [iter(part.split(self.of(mode))) for mode, part in zip(MODES, parts, strict=True)]
        return torch.cat([next(split[at]) for entry in self.lengths for at, length in enumerate(entry) if length])

    def drawn(self, joint: Tensor) -> Tensor:
        """(S, ...) in joint order -> the drawn tokens alone."""
        return torch.cat(joint.split(self.segments)[MODES.index("image") :: len(MODES)])
