"""What an SDXL checkpoint draws: its cell, its largest picture, what else it can follow."""

from __future__ import annotations

from dataclasses import dataclass

from models.sdxl.components import SdxlComponents
from models.single.sdxl import lightning_file
from pipelines.engine.request import RequestError
from pipelines.families.size import SizeLimits
from pipelines.protocol.conditions import ImageToImage, Inpaint
from pipelines.protocol.params import GenerationParams

CELLS_PER_TOKEN = 16
"""Latent cells: most of a UNet's attention layers stand where both sides were halved twice."""


@dataclass(frozen=True, slots=True)
class SdxlLimits(SizeLimits):
    """The engine's `Limits` for SDXL.

    Args:
        size_multiple, max_pixels: as in `SizeLimits`; a cell is one of the latents.
        name, distilled_steps: the checkpoint's (see `ModelSpec`).
    """

    name: str = ""
    distilled_steps: int | None = None

    @classmethod
    def of(cls, components: SdxlComponents) -> SdxlLimits:
        spec = components.spec
        return cls(components.cell, spec.max_pixels, spec.name, spec.distilled_steps)

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""
        for condition in params.conditions:
            if not isinstance(condition, ImageToImage | Inpaint) or getattr(condition, "is_differential", False):
                raise RequestError(f"an SDXL model cannot do {condition.kind.replace('_', ' ')} here")
        if params.adapters:
            raise RequestError("LoRAs of SDXL cannot be used here", ("loras",))
        self.check_size(params)

    def note(self, params: GenerationParams) -> str | None:
        """That the checkpoint was distilled for another number of steps: its pictures are poorer in any other."""
        steps, own = params.num_inference_steps, self.distilled_steps
        if own is None or own == steps:
            return None
        file = lightning_file(steps)
        better = f"; {file} would match" if file else ""
        return f"drawn in {_counted(steps)} by {self.name}, which was distilled for {own}{better}"

    def alike(self, params: GenerationParams) -> tuple[int, int]:
        """A UNet takes pictures of one size at a time."""
        return self.sides(params)

    def is_guided(self, params: GenerationParams) -> bool:
        """Whether each step asks the model twice, with the prompt and with the negative one."""
        return params.guidance_scale > 1

    def tokens(self, params: GenerationParams) -> int:
        """Tokens that one picture adds to a step, as a transformer's would be: the cost model knows one unit."""
        height, width = self.sides(params)
        return -(-height * width // CELLS_PER_TOKEN) * (2 if self.is_guided(params) else 1)


def _counted(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"
