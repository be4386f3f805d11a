"""What an SDXL checkpoint draws: its cell, its largest picture, what else it can follow."""

from __future__ import annotations

from dataclasses import dataclass

from models.sdxl.components import SdxlComponents
from pipelines.engine.request import RequestError
from pipelines.protocol.conditions import ImageToImage, Inpaint
from pipelines.protocol.params import GenerationParams


@dataclass(frozen=True, slots=True)
class SdxlLimits:
    """The engine's `Limits` for SDXL.

    Args: size_multiple: side of a latent cell in pixels. max_pixels: largest width x height, in whole cells.
    """

    size_multiple: int
    max_pixels: int

    @classmethod
    def of(cls, components: SdxlComponents) -> SdxlLimits:
        return cls(components.cell, components.spec.max_pixels)

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""
        for condition in params.conditions:
            if not isinstance(condition, ImageToImage | Inpaint) or getattr(condition, "is_differential", False):
                raise RequestError(f"an SDXL model cannot do {condition.kind.replace('_', ' ')} here")
        if params.adapters:
            raise RequestError("LoRAs of SDXL cannot be used here", ("loras",))
        height, width = self.drawn(params)
        if height * width > self.max_pixels:
            raise RequestError(
                f"{params.width} x {params.height} pixels are more than the {self.max_pixels} that this model can draw"
            )

    def drawn(self, params: GenerationParams) -> tuple[int, int]:
        """Height and width in pixels of what is drawn: the next multiples of a cell."""
        return self._rounded_up(params.height), self._rounded_up(params.width)

    def sides(self, params: GenerationParams) -> tuple[int, int]:
        """The same in cells."""
        height, width = self.drawn(params)
        return height // self.size_multiple, width // self.size_multiple

    def alike(self, params: GenerationParams) -> tuple[int, int]:
        """A UNet takes pictures of one size at a time."""
        return self.sides(params)

    def is_guided(self, params: GenerationParams) -> bool:
        """Whether each step asks the model twice, with the prompt and with the negative one."""
        return params.guidance_scale > 1

    def tokens(self, params: GenerationParams) -> int:
        """Latent cells that one picture adds to a step."""
        height, width = self.sides(params)
        return height * width * (2 if self.is_guided(params) else 1)

    def _rounded_up(self, side: int) -> int:
        return -(-side // self.size_multiple) * self.size_multiple
