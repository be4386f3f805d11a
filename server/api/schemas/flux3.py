"""The inputs of FLUX.3 [klein]'s endpoints: draw, and edit up to ten pictures, by one checkpoint.

As far as fal's page was seen: ids of the two that draw, their steps, guidance, formats and expansion.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.protocol.conditions import SEEN_AREA, Condition, Reference
from server.api.schemas.base import Guided, PromptText, Sized, SizedOrLikePicture, Steps, WideGuidance
from server.api.schemas.flux2 import BaseSteps, Klein
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import PictureUrl

MAX_REFERENCES = 10


class _Klein(Klein):
    """Its authors want every prompt written out."""

    expand_prompt: bool = Field(False, description="The same as enable_prompt_expansion.")  # without that as its alias
    enable_prompt_expansion: bool = Field(True, description="Whether the prompt is written out before it is drawn.")

    def wants_expansion(self) -> bool:
        return self.enable_prompt_expansion or super().wants_expansion()


class _Distilled(_Klein):
    num_inference_steps: Steps = 12

    def steps(self) -> int:
        return self.num_inference_steps


class _Base(_Klein, Guided):
    num_inference_steps: BaseSteps = 50
    guidance_scale: WideGuidance = 3.5
    negative_prompt: PromptText = Field("", description="Text of what should not be in the picture.")

    def steps(self) -> int:
        return self.num_inference_steps

    def avoided(self) -> str:
        return self.negative_prompt


class _Editing(SizedOrLikePicture):
    image_urls: Annotated[list[PictureUrl], Field(min_length=1, max_length=MAX_REFERENCES)] = Field(
        description="Pictures to edit or to compose from."
    )

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        area = SEEN_AREA if len(self.image_urls) > 1 else None  # one alone is drawn whole, at up to four megapixels
        seen = [needs.picture(url, "image_urls", i, seen_area=area) for i, url in enumerate(self.image_urls)]
        return (Reference(tuple(seen)),)


class Flux3Klein(_Distilled, Sized):
    """blackforestlabs/flux-3/klein/text-to-image."""


class Flux3KleinEdit(_Editing, _Distilled):
    """The same with /edit."""


class Flux3KleinBase(_Base, Sized):
    """blackforestlabs/flux-3/klein/base/text-to-image."""


class Flux3KleinBaseEdit(_Editing, _Base):
    """The same with /base/edit."""
