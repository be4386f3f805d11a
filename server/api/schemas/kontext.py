"""The inputs of fal's Kontext endpoints: edit pictures by instruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from pipelines.protocol.conditions import Condition, ImageToImage, Inpaint, Reference
from server.api.schemas.base import (
    TOLERANCE_THRESHOLDS,
    Accelerated,
    Adapted,
    Checked,
    Enhanced,
    Guidance,
    Guided,
    Input,
    KeptSteps,
    LikePicture,
    OutputFormat,
    Prompted,
    Repeatable,
    Sized,
    Stepped,
    Strength,
    Tolerance,
    WideGuidance,
)
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import MaskUrl, PictureUrl
from server.api.schemas.sizes import KONTEXT_1MP, AspectRatio, Size, nearest_ratio, pixels_of_ratio, shrink

MAX_REFERENCES = 8
"""Every reference lengthens the sequence by a picture; fal publishes no number."""

ResolutionMode = Literal[
    "auto", "match_input", "1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"
]


class KontextPro(Enhanced, Repeatable, Prompted, Guided):
    """What fal's Kontext [pro] and [max] have in common: about 1 megapixel, safety by degree only."""

    safety_tolerance: Tolerance = "2"

    def threshold(self) -> float | None:
        return TOLERANCE_THRESHOLDS[self.safety_tolerance]


class KontextText(KontextPro):
    """fal-ai/flux-pro/kontext/text-to-image and /max."""

    aspect_ratio: AspectRatio = "1:1"

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        return shrink(*KONTEXT_1MP[self.aspect_ratio], max_pixels)


class KontextEdit(KontextPro):
    """An edit: shaped as asked, else as the first picture."""

    aspect_ratio: AspectRatio | None = Field(None, description="width:height. Left out: as the first picture.")

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        if self.aspect_ratio is not None:
            return shrink(*KONTEXT_1MP[self.aspect_ratio], max_pixels)
        return shrink(*nearest_ratio(KONTEXT_1MP, pictures[0] if pictures else (1, 1)), max_pixels)


class Edited(Input):
    """One picture to edit."""

    image_url: PictureUrl

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (Reference((needs.picture(self.image_url, "image_url"),)),)


class KontextProEdit(Edited, KontextEdit):
    """fal-ai/flux-pro/kontext and /max."""


class KontextProMulti(KontextEdit):
    """fal-ai/flux-pro/kontext/multi and /max/multi."""

    image_urls: Annotated[list[PictureUrl], Field(min_length=1, max_length=MAX_REFERENCES)] = Field(
        description="Pictures to edit or to compose from."
    )

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (Reference(tuple(needs.picture(url, "image_urls", i) for i, url in enumerate(self.image_urls))),)


class WithResolution(Input):
    """Sized by a mode."""

    resolution_mode: ResolutionMode = Field(
        "match_input",
        description="match_input: as the picture. auto: the trained size of the nearest shape. Or width:height.",
    )

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        picture = pictures[0] if pictures else (1024, 1024)
        if self.resolution_mode == "match_input":
            return shrink(*picture, max_pixels)
        if self.resolution_mode == "auto":
            return shrink(*nearest_ratio(KONTEXT_1MP, picture), max_pixels)
        return shrink(*_one_megapixel(self.resolution_mode), max_pixels)


class KontextDev(Edited, WithResolution, Repeatable, Prompted, Stepped, Guided, Checked, Accelerated):
    """fal-ai/flux-kontext/dev."""

    num_inference_steps: KeptSteps = 28
    guidance_scale: Guidance = 2.5


class KontextAdapted(Repeatable, Prompted, Stepped, Guided, Checked, Adapted):
    """What fal's Kontext LoRA endpoints have in common."""

    num_inference_steps: KeptSteps = 30
    guidance_scale: WideGuidance = 2.5
    output_format: OutputFormat = Field("png", description="File format of the pictures.")


class KontextLora(Edited, WithResolution, KontextAdapted, Accelerated):
    """fal-ai/flux-kontext-lora."""


class KontextLoraText(KontextAdapted, Sized, Accelerated):
    """fal-ai/flux-kontext-lora/text-to-image."""


class KontextLoraImageToImage(LikePicture, KontextAdapted):
    """fal-ai/flux-kontext-lora/image-to-image: an edit that starts from the picture."""

    image_url: PictureUrl
    strength: Strength = 0.88

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        picture = needs.picture(self.image_url, "image_url")
        return (ImageToImage(picture, self.strength), Reference((picture,)))


class KontextLoraInpaint(LikePicture, KontextAdapted, Accelerated):
    """fal-ai/flux-kontext-lora/inpaint: what a mask covers is drawn after another picture."""

    image_url: PictureUrl
    reference_image_url: PictureUrl
    mask_url: MaskUrl
    strength: Strength = 0.88

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        picture = needs.picture(self.image_url, "image_url")
        mask = needs.mask(self.mask_url, "mask_url")
        reference = needs.picture(self.reference_image_url, "reference_image_url")
        return (Inpaint(picture, mask, self.strength), Reference((reference,)))


def _one_megapixel(ratio: str) -> Size:
    """About 1 megapixel of that shape: as listed, else computed."""
    width, height = ratio.split(":")
    return KONTEXT_1MP.get(ratio) or pixels_of_ratio(int(width), int(height), area=1024 * 1024, multiple=16)
