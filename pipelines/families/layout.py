"""How the pictures of one step lie side by side: every family of joint text and image tokens packs them so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipelines.adapters.adapter import Uses
from pipelines.adapters.binding import NOTHING, Segments, Stream, by_picture
from pipelines.ops.ops import TokenRows


@dataclass(frozen=True)
class PackLayout:
    """How the pictures of one step lie in the packed list, in order.

    Args:
        text_lengths, image_lengths: tokens of each picture.
        rope: complex64 (S, 1, head_dim / 2), the rotations of all tokens in joint order: each picture's text,
            then its image. S is the sum of all lengths.
        uses: the adapters of each picture; empty if no picture has any.
    """

    text_lengths: tuple[int, ...]
    image_lengths: tuple[int, ...]
    rope: Tensor
    uses: tuple[Uses, ...] = ()

    @cached_property
    def joint_lengths(self) -> tuple[int, ...]:
        return tuple(t + n for t, n in zip(self.text_lengths, self.image_lengths, strict=True))

    @cached_property
    def text_rows(self) -> TokenRows:
        return TokenRows(self.text_lengths, self.rope.device)

    @cached_property
    def image_rows(self) -> TokenRows:
        return TokenRows(self.image_lengths, self.rope.device)

    @cached_property
    def joint_rows(self) -> TokenRows:
        return TokenRows(self.joint_lengths, self.rope.device)

    @cached_property
    def ropes(self) -> tuple[Tensor, Tensor, Tensor]:
        """(cos, sin) of the text's, the image's and all tokens: float32 (..., 1, head_dim / 2, 2)."""
        joint = torch.view_as_real(self.rope)
        return *self.part(joint), joint

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """(sum T,) and (sum N,) int64 on the device: where text and image tokens stand in joint order."""
        joint = torch.arange(sum(self.joint_lengths), device=self.rope.device)
        return self.part(joint)

    @cached_property
    def segments(self) -> Segments:
        """Where in each list of tokens which adapters take part."""
        if not self.uses:
            return NOTHING
        lengths: Mapping[Stream, tuple[int, ...]] = {
            "text": self.text_lengths,
            "image": self.image_lengths,
            "joint": self.joint_lengths,
        }
        return by_picture(self.uses, lengths)

    def select(self, rows: Sequence[int]) -> PackLayout:
        """The layout of these pictures alone, in the order given."""
        ropes = self.rope.split(self.joint_lengths)
        return PackLayout(
            text_lengths=tuple(self.text_lengths[row] for row in rows),
            image_lengths=tuple(self.image_lengths[row] for row in rows),
            rope=torch.cat([ropes[row] for row in rows]),
            uses=tuple(self.uses[row] for row in rows) if self.uses else (),
        )

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
