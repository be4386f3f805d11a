"""What a FLUX.1 checkpoint draws: its cell, its largest picture, its longest prompt."""

from __future__ import annotations

from dataclasses import dataclass

from models.components import FluxComponents
from pipelines.engine.request import RequestError
from pipelines.protocol.conditions import Condition
from pipelines.protocol.params import GenerationParams


@dataclass(frozen=True, slots=True)
class Flux1Limits:
    """The engine's `Limits` for FLUX.1, whose tokens are square cells of the picture and padded text.

    Args:
        size_multiple: side of one token's cell in pixels.
        max_pixels: largest width x height of a request, rounded up to whole cells.
        max_sequence_length: most T5 tokens of a prompt.
        takes: conditions it can follow.
    """

    size_multiple: int
    max_pixels: int
    max_sequence_length: int
    takes: tuple[type[Condition], ...] = ()

    @classmethod
    def of(cls, components: FluxComponents) -> Flux1Limits:
        spec = components.spec
        return cls(components.size_multiple, spec.max_pixels, spec.max_sequence_length)

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""
        for condition in params.conditions:
            if not isinstance(condition, self.takes):
                raise RequestError(f"this model cannot do {condition.kind.replace('_', ' ')}")
        height, width = self.drawn(params)
        if height * width > self.max_pixels:
            raise RequestError(
                f"{params.width} x {params.height} pixels are more than the {self.max_pixels} that this model can draw"
            )

    def drawn(self, params: GenerationParams) -> tuple[int, int]:
        """Height and width in pixels of what is drawn: the next multiples of the model's cell."""
        return self._rounded_up(params.height), self._rounded_up(params.width)

    def text_tokens(self, params: GenerationParams) -> int:
        """T5 tokens that the prompt is padded or cut to."""
        return min(params.max_sequence_length, self.max_sequence_length)

    def tokens(self, params: GenerationParams) -> int:
        """Joint tokens, text and image, that one picture adds to a step."""
        height, width = self.drawn(params)
        return (height * width) // self.size_multiple**2 + self.text_tokens(params)

    def _rounded_up(self, side: int) -> int:
        return -(-side // self.size_multiple) * self.size_multiple
