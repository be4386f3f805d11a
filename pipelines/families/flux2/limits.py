"""What a FLUX.2 checkpoint draws: its cell, its largest picture, its longest prompt, what else it can follow."""

from __future__ import annotations

from dataclasses import dataclass

from models.flux2.components import Flux2Components
from pipelines.engine.request import RequestError
from pipelines.families.size import SizeLimits
from pipelines.protocol.conditions import SEEN_AREA, Reference
from pipelines.protocol.params import GenerationParams


@dataclass(frozen=True, slots=True)
class Flux2Limits(SizeLimits):
    """The engine's `Limits` for FLUX.2.

    Args:
        size_multiple, max_pixels: as in `SizeLimits`; a cell is one token.
        max_sequence_length: most tokens of a prompt.
        is_distilled: whether guidance means nothing to it.
        passes_references_once: whether they are part of its first step alone.
    """

    max_sequence_length: int
    is_distilled: bool
    passes_references_once: bool = False

    @classmethod
    def of(cls, components: Flux2Components) -> Flux2Limits:
        spec = components.spec
        return cls(
            components.size_multiple,
            spec.max_pixels,
            spec.max_sequence_length,
            components.is_distilled,
            components.passes_references_once,
        )

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""
        for condition in params.conditions:
            if not isinstance(condition, Reference):
                raise RequestError(f"a FLUX.2 model cannot do {condition.kind.replace('_', ' ')} here")
        self.check_size(params)

    def text_tokens(self, params: GenerationParams) -> int:
        """Tokens that the prompt is padded or cut to."""
        return min(params.max_sequence_length, self.max_sequence_length)

    def is_guided(self, params: GenerationParams) -> bool:
        """Whether each step asks the model twice, with the prompt and with the negative one."""
        return params.guidance_scale > 1 and not self.is_distilled

    def tokens(self, params: GenerationParams) -> int:
        """Tokens that one picture adds to a step, on the average.

        References, whose sizes are not known yet, count as the picture.
        """
        height, width = self.sides(params)
        reference = params.find(Reference)
        pictures = len(reference.pictures) if reference else 0
        seen = min(height * width, SEEN_AREA // self.size_multiple**2) * pictures
        if self.passes_references_once:
            seen = -(-seen // params.num_steps)
        return (height * width + seen + self.text_tokens(params)) * (2 if self.is_guided(params) else 1)
