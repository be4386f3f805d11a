"""How large the pictures of a checkpoint may be, and what is drawn of a size that is no multiple of its cell."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from pipelines.engine.request import RequestError
from pipelines.protocol.params import GenerationParams


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """What the engine's `Limits` of every family share.

    Args: size_multiple: side of a cell in pixels. max_pixels: largest width x height, rounded up to whole cells.
    """

    size_multiple: int
    max_pixels: int

    def check_size(self, params: GenerationParams) -> None:
        """Raises: RequestError with the limit in the message."""
        height, width = self.drawn(params)
        if height * width > self.max_pixels:
            raise RequestError(
                f"{params.width} x {params.height} pixels are more than the {self.max_pixels} that this model can draw"
            )

    def drawn(self, params: GenerationParams) -> tuple[int, int]:
        """Height and width in pixels of what is drawn in the end: the next multiples of the model's cell."""
        return self._rounded_up(params.height), self._rounded_up(params.width)

    def sides(self, params: GenerationParams) -> tuple[int, int]:
        """The same in cells."""
        height, width = self.drawn(params)
        return height // self.size_multiple, width // self.size_multiple

    def note(self, params: GenerationParams) -> str | None:
        """See `Limits`."""

    def alike(self, params: GenerationParams) -> Hashable:
        """See `Limits`: a packed step takes pictures of all sizes together."""

    def _rounded_up(self, side: int) -> int:
        return -(-side // self.size_multiple) * self.size_multiple
