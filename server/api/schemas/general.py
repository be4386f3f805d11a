"""The inputs of fal's flux-general: FLUX.1 [dev] with adapters, ControlNets and many switches.

What this server has no engine for must keep its default; anything else is refused at its field, never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from pipelines.protocol.conditions import Condition, ControlNet
from server.api.schemas.base import (
    Adapted,
    Checked,
    Guided,
    Input,
    OutputFormat,
    Prompted,
    PromptText,
    Repeatable,
    SizedOrLikePicture,
    Stepped,
    WideGuidance,
)
from server.api.schemas.fill import PicturePrompt
from server.api.schemas.image_to_image import Mapped, Masked, Reworked
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import PictureUrl
from server.api.schemas.sizes import PRESETS, Size, pixels_of

MAX_CONTROLNETS = 4

_UNSUPPORTED = (
    "control_loras", "controlnet_unions", "ip_adapters", "easycontrols", "use_real_cfg", "use_cfg_zero",
    "reference_image_url", "base_shift", "max_shift", "use_beta_schedule", "sigma_schedule", "scheduler",
    "negative_prompt",
)  # fmt: skip
"""Fields that must keep their default. Those that only matter beside one of these are free."""


class ControlNetWeight(BaseModel):
    """A ControlNet that this server serves, and the picture that it follows."""

    path: str = Field(min_length=1, max_length=2048, description="Name or repo of a ControlNet that is served.")
    control_image_url: PictureUrl
    config_url: str | None = Field(None, description="Accepted; the served checkpoint has its own.")
    variant: str | None = Field(None, description="Accepted; the served checkpoint has its own.")
    mask_image_url: str | None = Field(None, description="Not supported: must be absent or null.")
    mask_threshold: float = Field(0.5, ge=0.01, le=0.99, description="Accepted; masks are not supported.")
    conditioning_scale: float = Field(1, ge=0, le=2, description="How much of it.")
    start_percentage: float = Field(0, ge=0, le=1, description="Part of the steps after which it begins.")
    end_percentage: float = Field(1, ge=0, le=1, description="Part of the steps after which it ends.")

    @field_validator("mask_image_url")
    @classmethod
    def _is_absent(cls, value: str | None) -> str | None:
        if value is not None:
            raise PydanticCustomError("feature_not_supported", "Masks of ControlNets are not supported by this server")
        return value

    @field_validator("end_percentage")
    @classmethod
    def _is_after_start(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("start_percentage", 0):
            raise PydanticCustomError("end_percentage", "Input should be greater than start_percentage")
        return value

    def condition(self, needs: Needs, index: int) -> ControlNet:
        """As the engine knows it."""
        return ControlNet(
            needs.named(self.path, ("controlnets", index, "path")),
            needs.picture(self.control_image_url, "controlnets", index, "control_image_url"),
            self.conditioning_scale,
            self.start_percentage,
            self.end_percentage,
        )


class Switches(Input):
    """Fields of flux-general that must keep their defaults here."""

    control_loras: list[Any] = Field(default=[], description="Not supported: must be empty.")
    controlnet_unions: list[Any] = Field(default=[], description="Not supported: must be empty.")
    ip_adapters: list[Any] = Field(default=[], description="Not supported: must be empty.")
    easycontrols: list[Any] = Field(default=[], description="Not supported: must be empty.")
    real_cfg_scale: float = Field(3.5, ge=0, le=5, description="Accepted; matters only with use_real_cfg.")
    use_real_cfg: bool = Field(False, description="Not supported: must be false.")
    use_cfg_zero: bool = Field(False, description="Not supported: must be false.")
    reference_image_url: str | None = Field(None, description="Not supported: must be absent.")
    reference_strength: float = Field(0.65, ge=-3, le=3, description="Accepted; matters only with a reference.")
    reference_start: float = Field(0, ge=0, le=1, description="Accepted; matters only with a reference.")
    reference_end: float = Field(1, ge=0, le=1, description="Accepted; matters only with a reference.")
    base_shift: float = Field(0.5, ge=0.01, le=5, description="Not supported: must be 0.5.")
    max_shift: float = Field(1.15, ge=0.01, le=5, description="Not supported: must be 1.15.")
    use_beta_schedule: bool = Field(False, description="Not supported: must be false.")
    sigma_schedule: Literal["sgm_uniform"] | None = Field(None, description="Not supported: must be absent or null.")
    scheduler: Literal["euler", "dpmpp_2m"] = Field("euler", description="Must be euler.")
    negative_prompt: PromptText = Field("", description="Not supported: must be empty.")
    nag_scale: float = Field(3, gt=1, le=10, description="Accepted; matters only with a negative prompt.")
    nag_tau: float = Field(2.5, gt=0, description="Accepted; matters only with a negative prompt.")
    nag_alpha: float = Field(0.25, gt=0, le=1, description="Accepted; matters only with a negative prompt.")
    nag_end: float = Field(0.25, gt=0, le=1, description="Accepted; matters only with a negative prompt.")

    @field_validator(*_UNSUPPORTED)
    @classmethod
    def _is_default(cls, value: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[str(info.field_name)].default
        if value != default:
            wanted = "absent" if default is None else f"left at {default!r}"
            msg = "{field} is not supported by this server: it must be {wanted}"
            raise PydanticCustomError("feature_not_supported", msg, {"field": info.field_name, "wanted": wanted})
        return value


class Many(Repeatable):
    """Up to ten pictures, lossless by default."""

    num_images: int = Field(1, ge=1, le=10, description="How many pictures to produce.")
    output_format: OutputFormat = Field("png", description="File format of the pictures.")


class General(Many, Prompted, SizedOrLikePicture, Stepped, Guided, Checked, Adapted, Switches):
    """What all of flux-general's endpoints have in common."""

    guidance_scale: WideGuidance = 3.5
    controlnets: Annotated[list[ControlNetWeight], Field(max_length=MAX_CONTROLNETS)] = Field(
        default=[], description="ControlNets to follow."
    )
    fill_image: PicturePrompt | None = Field(None, description="Pictures to draw after, as Redux does.")

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        nets = tuple(net.condition(needs, index) for index, net in enumerate(self.controlnets))
        return nets if self.fill_image is None else (*nets, *self.fill_image.redux(needs))


class FluxGeneral(General):
    """fal-ai/flux-general."""

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        return PRESETS["landscape_4_3"] if self.image_size is None else pixels_of(self.image_size)


class FluxGeneralImageToImage(Reworked, General):
    """fal-ai/flux-general/image-to-image."""

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (*Reworked.conditions(self, needs), *General.conditions(self, needs))


class FluxGeneralInpainting(Masked, General):
    """fal-ai/flux-general/inpainting."""

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (*Masked.conditions(self, needs), *General.conditions(self, needs))


class FluxGeneralDifferentialDiffusion(Mapped, General):
    """fal-ai/flux-general/differential-diffusion."""

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (*Mapped.conditions(self, needs), *General.conditions(self, needs))
