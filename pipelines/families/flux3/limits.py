"""What a FLUX.3 checkpoint draws: its cell, its largest picture, its longest prompt, what else it can follow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.flux3.components import Flux3Components
from pipelines.engine.request import RequestError
from pipelines.families.flux3.encode import presumed_window
from pipelines.families.flux3.prepare import LARGEST
from pipelines.families.size import SizeLimits
from pipelines.protocol.conditions import SEEN_AREA, Reference
from pipelines.protocol.params import GenerationParams

MAX_REFERENCES = 10


@dataclass(frozen=True, slots=True)
class Flux3Limits(SizeLimits):
    """The engine's `Limits` for FLUX.3.

    Args:
        size_multiple, max_pixels: as in `SizeLimits`; a cell is one token.
        max_sequence_length: most tokens of a prompt.
        is_flow_map: whether it is distilled, so that guidance means nothing to it.
    """

    max_sequence_length: int
    is_flow_map: bool

    @classmethod
    def of(cls, components: Flux3Components) -> Flux3Limits:
        spec = components.spec
        return cls(components.size_multiple, spec.max_pixels, spec.max_sequence_length, components.is_flow_map)

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""
        for condition in params.conditions:
            if not isinstance(condition, Reference):
                raise RequestError(f"a FLUX.3 model cannot do {condition.kind.replace('_', ' ')} here")
            if len(condition.pictures) > MAX_REFERENCES:
                raise RequestError(f"a FLUX.3 model looks at {MAX_REFERENCES} pictures at most")
        if params.adapters:
            raise RequestError("LoRAs of FLUX.3 cannot be used here", ("loras",))
        self.check_size(params)

    def is_guided(self, params: GenerationParams) -> bool:
        """Whether each step asks the model twice, with the prompt and with the negative one."""
        return not self.is_flow_map and not math.isclose(params.guidance_scale, 1.0)

    def tokens(self, params: GenerationParams) -> int:
        """Tokens that one picture adds to a step; prompts and references, not known yet, count by their likely size."""
        height, width = self.sides(params)
        reference = params.find(Reference)
        pictures = len(reference.pictures) if reference else 0
        largest = (LARGEST if pictures == 1 else SEEN_AREA) // self.size_multiple**2
        text = presumed_window(params.prompt, self.max_sequence_length)
        return (height * width + min(height * width, largest) * pictures + text) * (2 if self.is_guided(params) else 1)
