"""What a FLUX.1 checkpoint draws: its cell, its largest picture, its longest prompt, the conditions it can follow."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.components import FluxComponents
from models.registry import REGISTRY, ModelSpec, Variant
from pipelines.engine.request import RequestError
from pipelines.families.size import SizeLimits
from pipelines.protocol.conditions import (
    Coarse,
    Condition,
    Control,
    ControlNet,
    Fill,
    ImageToImage,
    Inpaint,
    Redux,
    Reference,
    Refine,
)
from pipelines.protocol.params import GenerationParams

_ANY: tuple[type[Condition], ...] = (ImageToImage, Inpaint, Redux, Refine, ControlNet, Coarse)
_CONTROL: tuple[type[Condition], ...] = (Control, ImageToImage, Redux)
_TAKES: dict[Variant, tuple[type[Condition], ...]] = {
    "kontext": (*_ANY, Reference),
    "fill": (Fill, Redux),
    "canny": _CONTROL,
    "depth": _CONTROL,
}
_NEEDS: dict[Variant, type[Condition]] = {"fill": Fill, "canny": Control, "depth": Control}
_REFINED: tuple[type[Condition], ...] = (ImageToImage, Redux, Refine)
"""What a second phase at another size can follow, too."""


@dataclass(frozen=True, slots=True)
class Flux1Limits(SizeLimits):
    """The engine's `Limits` for FLUX.1, whose tokens are square cells of the picture and padded text.

    Args:
        size_multiple, max_pixels: as in `SizeLimits`; a cell is one token.
        max_sequence_length: most T5 tokens of a prompt.
        variant: what the checkpoint was trained for.
        native_pixels: width x height of the first of two phases.
    """

    max_sequence_length: int
    variant: Variant = "dev"
    native_pixels: int = 1024 * 1024

    @classmethod
    def of(cls, components: FluxComponents) -> Flux1Limits:
        spec = components.spec
        return cls(
            components.size_multiple, spec.max_pixels, spec.max_sequence_length, spec.variant, spec.native_pixels
        )

    def check(self, params: GenerationParams) -> None:
        """Raises: RequestError if the model cannot do it, with the limit in the message."""
        self._check_conditions(params)
        self.check_size(params)

    def _check_conditions(self, params: GenerationParams) -> None:
        takes, needs = _TAKES.get(self.variant, _ANY), _NEEDS.get(self.variant)
        for condition in params.conditions:
            if not isinstance(condition, takes):
                raise RequestError(f"a {self.variant} model cannot do {_words(type(condition))}")
            if isinstance(condition, Control) and condition.control != self.variant:
                raise RequestError(f"a {self.variant} model cannot follow {condition.control}")
        if needs is not None and params.find(needs) is None:
            raise RequestError(f"a {self.variant} model draws only with {_words(needs)}")
        if params.find(Refine) and not all(isinstance(condition, _REFINED) for condition in params.conditions):
            raise RequestError("a second phase goes with image to image and redux only")
        if params.find(Coarse) and len(params.conditions) > 1:
            raise RequestError("coarse first steps go with a prompt only")
        if params.find(Reference) and params.find(ControlNet):
            raise RequestError("a ControlNet was not trained beside references: give one or the other")

    def phases(self, params: GenerationParams) -> tuple[tuple[int, int], ...]:
        """Height and width in pixels of every phase: with `Refine`, first about as large as the model was trained;
        with `Coarse`, half as high and wide."""
        height, width = self.drawn(params)
        if len(params.phases) == 1:
            return ((height, width),)
        factor = 0.5 if params.find(Coarse) else math.sqrt(min(1.0, self.native_pixels / (height * width)))
        return (self._rounded(height * factor), self._rounded(width * factor)), (height, width)

    def text_tokens(self, params: GenerationParams) -> int:
        """T5 tokens that the prompt is padded or cut to."""
        return min(params.max_sequence_length, self.max_sequence_length)

    def tokens(self, params: GenerationParams) -> int:
        """Joint tokens that one picture adds to a step, on the average of its steps."""
        cells = [(height * width) // self.size_multiple**2 for height, width in self.phases(params)]
        image = sum(n * steps for n, steps in zip(cells, params.phases, strict=True)) // params.num_steps
        reference, redux = params.find(Reference), params.find(Redux)
        image += image * len(reference.pictures) if reference else 0
        return image + self.text_tokens(params) + (_spec(redux.encoder).picture_tokens if redux else 0)

    def _rounded(self, side: float) -> int:
        return max(1, round(side / self.size_multiple)) * self.size_multiple


def _spec(name: str) -> ModelSpec:
    return REGISTRY.get(name) or ModelSpec(name, name, variant="redux")


def _words(condition: type[Condition]) -> str:
    return condition.kind.replace("_", " ")
