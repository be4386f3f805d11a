"""The inputs of fal's endpoints that follow the edges or the depth of a picture."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from pipelines.protocol.conditions import Condition, Control, ImageToImage
from server.api.schemas.base import (
    GuidedAsUsual,
    Input,
    LoraInput,
    Prompted,
    Repeatable,
    Sized,
    SizedOrLikePicture,
    SlightlyAccelerated,
    Stepped,
    Strength,
    Tolerant,
    WidestGuidance,
)
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import PictureUrl

Kind = Literal["canny", "depth"]

USUAL_STRENGTH = 0.85
SHOWS_DEPTH = "preprocess_depth"
"""The field that says, if false, that a guide is no picture to be looked at but what to follow."""


class Canny(Input):
    """Follows edges."""

    control: ClassVar[Kind] = "canny"


class Depth(Input):
    """Follows depth."""

    control: ClassVar[Kind] = "depth"


class FluxProControl(Repeatable, Prompted, Sized, Stepped, GuidedAsUsual, Tolerant):
    """What both pro endpoints have in common."""

    control: ClassVar[Kind]
    control_image_url: PictureUrl

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (Control(self.control, needs.picture(self.control_image_url, "control_image_url")),)


class FluxProCanny(FluxProControl, Canny):
    """fal-ai/flux-pro/v1/canny."""


class FluxProDepth(FluxProControl, Depth):
    """fal-ai/flux-pro/v1/depth."""


class FluxLoraControl(GuidedAsUsual, LoraInput, SlightlyAccelerated, SizedOrLikePicture):
    """What both have in common."""

    control: ClassVar[Kind]
    guidance_scale: WidestGuidance = 3.5
    image_url: PictureUrl

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (Control(self.control, needs.picture(self.image_url, "image_url")),)


class FluxLoraCanny(FluxLoraControl, Canny):
    """fal-ai/flux-lora-canny."""


class FluxLoraDepth(FluxLoraControl, Depth):
    """fal-ai/flux-lora-depth."""


class FluxControlLora(GuidedAsUsual, LoraInput):
    """What the four have in common. They are answered by the whole checkpoint that the control LoRA was cut from."""

    control: ClassVar[Kind]
    guidance_scale: WidestGuidance = 3.5
    control_lora_image_url: PictureUrl
    control_lora_strength: float = Field(
        1, ge=0, le=2, description="Must be 1: a whole checkpoint answers, not a LoRA beside another."
    )

    @field_validator("control_lora_strength")
    @classmethod
    def _is_whole(cls, value: float) -> float:
        if value != 1:
            msg = "Only a strength of 1 is supported: a whole checkpoint answers, not a LoRA beside another"
            raise PydanticCustomError("feature_not_supported", msg)
        return value

    def guide(self, needs: Needs, is_prepared: bool = False) -> Control:
        """The picture to follow."""
        picture = needs.picture(self.control_lora_image_url, "control_lora_image_url")
        return Control(self.control, picture, is_prepared)


class FluxControlLoraText(FluxControlLora, Sized):
    """Without a picture to start from, or with one."""

    image_url: PictureUrl | None = Field(None, description="URL or data URI of a picture to start from.")
    preprocess_depth: bool = Field(True, description="False: the guide already shows edges or depth.")

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        guide = self.guide(needs, is_prepared=not self.preprocess_depth)
        if self.image_url is None:
            return (guide,)
        return (guide, ImageToImage(needs.picture(self.image_url, "image_url"), USUAL_STRENGTH))


class FluxControlLoraImageToImage(FluxControlLora, SizedOrLikePicture):
    """With a picture to start from."""

    image_url: PictureUrl
    strength: Strength = USUAL_STRENGTH

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        # The picture that is reworked comes first: where no size is given, it decides.
        start = ImageToImage(needs.picture(self.image_url, "image_url"), self.strength)
        return (start, self.guide(needs))


class FluxControlLoraCanny(FluxControlLoraText, Canny):
    """fal-ai/flux-control-lora-canny."""


class FluxControlLoraDepth(FluxControlLoraText, Depth):
    """fal-ai/flux-control-lora-depth."""


class FluxControlLoraCannyImageToImage(FluxControlLoraImageToImage, Canny):
    """fal-ai/flux-control-lora-canny/image-to-image."""


class FluxControlLoraDepthImageToImage(FluxControlLoraImageToImage, Depth):
    """fal-ai/flux-control-lora-depth/image-to-image."""
