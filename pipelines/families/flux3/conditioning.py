"""What FLUX.3 keeps of a request between steps; the engine carries it without looking inside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pipelines.engine.request import Row
from pipelines.families.flux3.sampling import Sides


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """What a request needs besides its noise, computed at admission and shared by its rows.

    Args:
        texts: (T, D) of the prompt; with guidance the negative prompt's, too, which may be of another length.
        text_ropes: complex64 (T, 1, head_dim / 2) of each.
        picture_rope: the same of N drawn tokens and M of references.
        guidance: how far from the negative prompt's velocity to the prompt's, where there are both.
        image: (steps, 8 D) modulation of the drawn tokens.
        text, reference: (steps, 6 D) of the others; (1, 6 D) where it is the same in every step.
        sigmas: (steps + 1,) float32, on the host.
        sigma_steps: (steps,) next sigma minus this one, in the model's dtype.
        sides: of the drawn picture.
        references: (M, D) pictures to look at; after their blocks where those do not depend on the step, as `texts`.
    """

    texts: tuple[Tensor, ...]
    text_ropes: tuple[Tensor, ...]
    picture_rope: Tensor
    guidance: float
    image: Tensor
    text: Tensor
    reference: Tensor
    sigmas: tuple[float, ...]
    sigma_steps: Tensor
    sides: Sides
    references: Tensor | None = None

    @property
    def lengths(self) -> tuple[tuple[int, int, int], ...]:
        """Of each entry that a row makes: tokens of text, drawn, looked at."""
        looked_at = 0 if self.references is None else int(self.references.shape[0])
        drawn = self.sides[0] * self.sides[1]
        return tuple((int(text.shape[0]), drawn, looked_at) for text in self.texts)

    @property
    def tokens(self) -> int:
        """That one row adds to a step."""
        return sum(map(sum, self.lengths))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What steps read of it."""
        references = () if self.references is None else (self.references,)
        modulation = (self.image, self.text, self.reference)
        return (*self.texts, *self.text_ropes, self.picture_rope, *modulation, self.sigma_steps, *references)


def conditioning_of(row: Row) -> Conditioning:
    conditioning = row.request.conditioning
    assert isinstance(conditioning, Conditioning), "the request was not admitted"
    return conditioning
