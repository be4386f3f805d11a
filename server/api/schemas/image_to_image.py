"""The inputs of fal's endpoints that rework a picture: the whole, behind a mask, or by a map of how much may change."""

from __future__ import annotations

from pydantic import Field

from pipelines.protocol.conditions import Condition, ImageToImage, Inpaint
from server.api.schemas.base import (
    Accelerated,
    Checked,
    Guidance,
    Guided,
    Input,
    KeptSteps,
    LikePicture,
    LoraInput,
    Prompted,
    Repeatable,
    Seeded,
    SizedOrLikePicture,
    SlightlyAccelerated,
    Stepped,
    Strength,
    WideGuidance,
)
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import MaskUrl, PictureUrl


class Reworked(Input):
    """Starts from a picture."""

    image_url: PictureUrl
    strength: Strength = 0.85

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (ImageToImage(needs.picture(self.image_url, "image_url"), self.strength),)


class Masked(Reworked):
    """Only where the mask is white."""

    mask_url: MaskUrl

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        picture = needs.picture(self.image_url, "image_url")
        return (Inpaint(picture, needs.mask(self.mask_url, "mask_url"), self.strength),)


class Mapped(Reworked):
    """As much as a map says."""

    change_map_image_url: MaskUrl = Field(description="Greyscale: black keeps the picture, white changes it most.")

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        picture = needs.picture(self.image_url, "image_url")
        change = needs.mask(self.change_map_image_url, "change_map_image_url")
        return (Inpaint(picture, change, self.strength, is_differential=True),)


class FluxDevImageToImage(Reworked, Repeatable, Prompted, LikePicture, Stepped, Guided, Checked, Accelerated):
    """fal-ai/flux/dev/image-to-image."""

    strength: Strength = 0.95
    num_inference_steps: KeptSteps = 40


class FluxKreaImageToImage(FluxDevImageToImage):
    """fal-ai/flux/krea/image-to-image and /srpo."""

    guidance_scale: Guidance = 4.5


class FluxLoraImageToImage(Reworked, LoraInput, SlightlyAccelerated, SizedOrLikePicture):
    """fal-ai/flux-lora/image-to-image and fal-ai/flux-krea-lora/image-to-image."""


class FluxLoraInpainting(Masked, LoraInput, SlightlyAccelerated, SizedOrLikePicture):
    """fal-ai/flux-lora/inpainting and fal-ai/flux-krea-lora/inpainting."""


class FluxDifferentialDiffusion(Mapped, Seeded, Prompted, LikePicture, Stepped, Guided, Checked):
    """fal-ai/flux-differential-diffusion, which publishes no format."""

    guidance_scale: WideGuidance = 3.5
