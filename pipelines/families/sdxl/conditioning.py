"""What SDXL keeps of a request and of a row between steps; the engine carries both without looking inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipelines.engine.request import Row
from pipelines.pictures.overlay import Overlay


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What a request needs besides its noise, computed at admission and shared by its rows.

    Args:
        texts: (E, 77, D) the prompt's embedding; with guidance the negative prompt's before it, so E is 1 or 2.
        pooled: (E, P). time_ids: (E, 6) the size that the picture claims to have.
        guidance: how far from the negative prompt's prediction to the prompt's.
        timesteps: (steps,) as the UNet takes them.
        mask: (1, 1, h, w), 1 where it is drawn anew; None draws all.
        overlay: the pixels to put back in the end.
    """

    texts: Tensor
    pooled: Tensor
    time_ids: Tensor
    guidance: float
    timesteps: Tensor
    mask: Tensor | None = None
    overlay: Overlay | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What steps read of it."""
        masks = () if self.mask is None else (self.mask,)
        return (self.texts, self.pooled, self.time_ids, self.timesteps, *masks)


@dataclass(frozen=True, slots=True, eq=False)
class RowState:
    """What one row carries from step to step besides its latents.

    Args:
        scheduler: its own.
        clean, noise: (1, C, h, w) what is around the mask, and what is mixed into it; None without a mask.
        expected: (1, C, h, w) the picture that the last step expected in the end.
    """

    scheduler: Any
    clean: Tensor | None = None
    noise: Tensor | None = None
    expected: Tensor | None = None


def conditioning_of(row: Row) -> Conditioning:
    conditioning = row.request.conditioning
    assert isinstance(conditioning, Conditioning), "the request was not admitted"
    return conditioning


def state_of(row: Row) -> RowState:
    assert isinstance(row.state, RowState), "the request was not admitted"
    return row.state
