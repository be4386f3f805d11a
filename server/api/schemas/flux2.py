"""The inputs of fal's FLUX.2 endpoints: draw, and edit up to eight pictures, by one checkpoint."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.protocol.conditions import SEEN_AREA, Condition, Reference
from server.api.schemas.base import (
    Accelerated,
    Acceleration,
    Adapted,
    AnyOutputFormat,
    Checked,
    Guided,
    Prompted,
    PromptText,
    Seeded,
    Sized,
    SizedOrLikePicture,
    WideGuidance,
)
from server.api.schemas.kontext import MAX_REFERENCES
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import PictureUrl
from server.api.schemas.sizes import SizeField

TURBO_STEPS = 8
DistilledSteps = Annotated[int, Field(ge=4, le=8, description="Number of denoising steps; four are enough.")]
BaseSteps = Annotated[int, Field(ge=4, le=50, description="Number of denoising steps.")]


class Klein(Seeded, Prompted, Checked):
    """What all of them have in common: WebP besides, and PNG if nothing is said."""

    output_format: AnyOutputFormat = Field("png", description="File format of the pictures.")

    def image_format(self) -> AnyOutputFormat:
        return self.output_format


class Distilled(Klein):
    """Few steps, no guidance."""

    num_inference_steps: DistilledSteps = 4

    def steps(self) -> int:
        return self.num_inference_steps


class Base(Klein, Guided, Accelerated):
    """Not distilled: many steps, real guidance, away from a second prompt."""

    num_inference_steps: BaseSteps = 28
    guidance_scale: WideGuidance = 5
    negative_prompt: PromptText = Field("", description="Text of what should not be in the picture.")
    acceleration: Acceleration = Field("regular", description="Faster presets may alter the picture slightly.")

    def steps(self) -> int:
        return self.num_inference_steps

    def avoided(self) -> str:
        return self.negative_prompt


class Editing(SizedOrLikePicture):
    """Pictures to edit or to compose from."""

    image_urls: Annotated[list[PictureUrl], Field(min_length=1, max_length=MAX_REFERENCES)] = Field(
        description="Pictures to edit or to compose from."
    )

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        seen = [needs.picture(url, "image_urls", i, seen_area=SEEN_AREA) for i, url in enumerate(self.image_urls)]
        return (Reference(tuple(seen)),)


class KleinDistilled(Distilled, Sized):
    """fal-ai/flux-2/klein/4b and 9b."""


class KleinDistilledEdit(Editing, Distilled):
    """The same with /edit."""


class KleinBase(Base, Sized):
    """fal-ai/flux-2/klein/4b/base and 9b/base."""


class KleinBaseEdit(Editing, Base):
    """The same with /edit."""


class KleinDistilledLora(KleinDistilled, Adapted):
    """fal-ai/flux-2/klein/4b/lora and 9b/lora."""


class KleinDistilledEditLora(KleinDistilledEdit, Adapted):
    """The same with /edit/lora."""


class KleinBaseLora(KleinBase, Adapted):
    """fal-ai/flux-2/klein/4b/base/lora and 9b/base/lora."""


class KleinBaseEditLora(KleinBaseEdit, Adapted):
    """The same with /base/edit/lora."""


class Dev(Klein, Guided):
    """FLUX.2 [dev]: guidance is one of its inputs."""

    guidance_scale: WideGuidance = 2.5
    expand_prompt: bool = Field(False, description="The same as enable_prompt_expansion.")  # without that as its alias
    enable_prompt_expansion: bool = Field(False, description="Let a language model write the prompt out first.")

    def wants_expansion(self) -> bool:
        return self.enable_prompt_expansion or super().wants_expansion()


class DevStepped(Dev, Accelerated):
    """Steps and speed chosen by the caller."""

    num_inference_steps: BaseSteps = 28
    acceleration: Acceleration = Field("regular", description="Faster presets may alter the picture slightly.")

    def steps(self) -> int:
        return self.num_inference_steps


class Flux2(DevStepped, Sized):
    """fal-ai/flux-2."""


class Flux2Edit(Editing, DevStepped):
    """fal-ai/flux-2/edit."""


class Flux2Lora(Flux2, Adapted):
    """fal-ai/flux-2/lora."""


class Flux2LoraEdit(Flux2Edit, Adapted):
    """fal-ai/flux-2/lora/edit."""


class Turbo(Dev):
    """Weights that were distilled to few steps."""

    def steps(self) -> int:
        return TURBO_STEPS


class Flux2Turbo(Turbo, Sized):
    """fal-ai/flux-2/turbo and /flash."""


class Flux2TurboEdit(Editing, Turbo):
    """The same with /edit."""

    image_size: SizeField | None = Field(
        "square_hd", description="Size of the pictures: a preset, or width and height. null: as the picture."
    )
