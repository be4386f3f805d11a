"""What a FLUX.2 checkpoint draws: its cell, its largest picture, its longest prompt, what else it can follow."""

from __future__ import annotations

from dataclasses import dataclass

from models.flux2.components import Flux2Components
from pipelines.engine.request import RequestError
from pipelines.families.flux2.prepare import LARGEST
from pipelines.protocol.conditions import Reference
from pipelines.protocol.params import GenerationParams


@dataclass(frozen=True, slots=True)
class Flux2Limits:
    """The engine's `Limits` for FLUX.2.

    Args:
        size_multiple: side of one token's cell in pixels.
        max_pixels: largest width x height of a request, rounded up to whole cells.
        max_sequence_length: most tokens of a prompt.
        is_distilled: whether guidance means nothing to it.
    """

    size_multiple: int
    max_pixels: int
    max_sequence_length: int
    is_distilled: bool

    @classmethod
    def of(cls, components: Flux2Components) -> Flux2Limits:
        spec = components.spec
        return cls(components.size_multiple, spec.max_pixels, spec.max_sequence_length, components.is_distilled)

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""
        for condition in params.conditions:
            if not isinstance(condition, Reference):
                raise RequestError(f"a FLUX.2 model cannot do {condition.kind.replace('_', ' ')} here")
        height, width = self.drawn(params)
        if height * width > self.max_pixels:
            raise RequestError(
                f"{params.width} x {params.height} pixels are more than the {self.max_pixels} that this model can draw"
            )

    def drawn(self, params: GenerationParams) -> tuple[int, int]:
        """Height and width in pixels of what is drawn: the next multiples of the model's cell."""
        return self._rounded_up(params.height), self._rounded_up(params.width)

    def sides(self, params: GenerationParams) -> tuple[int, int]:
        """The same in tokens."""
        height, width = self.drawn(params)
        return height // self.size_multiple, width // self.size_multiple

    def text_tokens(self, params: GenerationParams) -> int:
        """Tokens that the prompt is padded or cut to."""
        return min(params.max_sequence_length, self.max_sequence_length)

    def is_guided(self, params: GenerationParams) -> bool:
        """Whether each step asks the model twice, with the prompt and with the negative one."""
        return params.guidance_scale > 1 and not self.is_distilled

    def alike(self, params: GenerationParams) -> None:
        """A packed step takes pictures of all sizes together."""

    def tokens(self, params: GenerationParams) -> int:
        """Tokens that one picture adds to a step; references, whose sizes are not known yet, count as the picture."""
        height, width = self.sides(params)
        reference = params.find(Reference)
        pictures = len(reference.pictures) if reference else 0
        seen = min(height * width, LARGEST // self.size_multiple**2) * pictures
        return (height * width + seen + self.text_tokens(params)) * (2 if self.is_guided(params) else 1)

    def _rounded_up(self, side: int) -> int:
        return -(-side // self.size_multiple) * self.size_multiple
