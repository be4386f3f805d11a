"""What FLUX.2 keeps of a request and of a row between steps; the engine carries both without looking inside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelines.adapters.adapter import Uses
from pipelines.engine.request import Row
from pipelines.families.flux2.sampling import Sides


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What a request needs besides its noise, computed at admission and shared by its rows.

    Args:
        texts: (T, D) prompt embeddings after the context embedder; with real guidance the negative prompt's, too.
        guidance: how far from the negative prompt's velocity to the prompt's, where there are both.
        modulation: (steps, 17 D) of every step.
        sigmas: (steps + 1,) float32, on the host.
        sigma_steps: (steps,) next sigma minus this one, in the model's dtype.
        rope: complex64 (T + N + M, 1, head_dim / 2).
        sides: of the drawn picture.
        references: (M, C) latents of pictures to look at: in every step behind the drawn tokens, or passed once.
        reference_rope: complex64 (M, 1, head_dim / 2) of those that are passed once; `modulation` then has one more
            row, theirs, and `rope` ends with the drawn tokens.
        uses: its adapters.
    """

    texts: tuple[Tensor, ...]
    guidance: float
    modulation: Tensor
    sigmas: tuple[float, ...]
    sigma_steps: Tensor
    rope: Tensor
    sides: Sides
    references: Tensor | None = None
    reference_rope: Tensor | None = None
    uses: Uses = ()

    @property
    def text_tokens(self) -> int:
        return int(self.texts[0].shape[0])

    @property
    def reference_tokens(self) -> int:
        return 0 if self.references is None else int(self.references.shape[0])

    @property
    def image_tokens(self) -> int:
        """In a step: with references, but for those that are passed once."""
        drawn = self.sides[0] * self.sides[1]
        return drawn + (self.reference_tokens if self.reference_rope is None else 0)

    @property
    def tokens(self) -> int:
        """That one row adds to a step."""
        return len(self.texts) * (self.text_tokens + self.image_tokens)

    @property
    def first_tokens(self) -> int:
        """That one row adds to its first step."""
        return self.tokens + (0 if self.reference_rope is None else self.reference_tokens)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What steps read of it."""
        references = [each for each in (self.references, self.reference_rope) if each is not None]
        adapters = [tensor for adapter, _ in self.uses for tensor in adapter.tensors]
        return (*self.texts, self.modulation, self.sigma_steps, self.rope, *references, *adapters)


@dataclass(slots=True)
class RowState:
    """What one row carries from step to step besides its latents.

    Args:
        velocity: (N, C) predicted by the last step; kept for requests that want previews.
        seen: of references that are passed once, what every step attends to (`pipelines.families.flux2.references`);
            shared by the rows of a request.
    """

    velocity: Tensor | None = None
    seen: tuple[Tensor, ...] = ()


def conditioning_of(row: Row) -> Conditioning:
    conditioning = row.request.conditioning
    assert isinstance(conditioning, Conditioning), "the request was not admitted"
    return conditioning
