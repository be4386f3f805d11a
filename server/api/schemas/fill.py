"""The inputs of fal's endpoints over a fill checkpoint: repaint, extend or erase what a mask covers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from pipelines.protocol.conditions import Condition, Fill, Redux
from server.api.schemas.base import (
    GuidedAsUsual,
    Input,
    LikePicture,
    LoraInput,
    OutputFormat,
    Prompted,
    PromptText,
    Repeatable,
    SizedOrLikePicture,
    SlightlyAccelerated,
    Tolerant,
)
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import MaskUrl, PictureUrl
from server.api.schemas.sizes import Size

MAX_GROWTH = 256


class Filled(Input):
    """A picture and what of it to draw anew."""

    image_url: PictureUrl
    mask_url: MaskUrl

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (Fill(needs.picture(self.image_url, "image_url"), needs.mask(self.mask_url, "mask_url")),)


class FluxProFill(Filled, Repeatable, Prompted, LikePicture, Tolerant):
    """fal-ai/flux-pro/v1/fill."""


class FluxProErase(Filled, LikePicture):
    """fal-ai/flux-pro/v1/erase: a fill without a prompt."""

    dilate_pixels: int = Field(10, description=f"Pixels by which the mask is widened first, 0 to {MAX_GROWTH}.")
    output_format: OutputFormat = Field("jpeg", description="File format of the picture.")

    @field_validator("dilate_pixels")
    @classmethod
    def _is_bounded(cls, value: int) -> int:
        if not 0 <= value <= MAX_GROWTH:
            raise PydanticCustomError("dilate_pixels", f"Input should be from 0 to {MAX_GROWTH}")
        return value

    def image_format(self) -> OutputFormat:
        return self.output_format

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        picture = needs.picture(self.image_url, "image_url")  # first: it decides the size
        return (Fill(picture, needs.mask(self.mask_url, "mask_url", grow=self.dilate_pixels)),)


def _kind(value: Any) -> str | None:
    """As for `image_size`: the errors of a value speak of what it was meant for alone."""
    if isinstance(value, list):
        return "<list>"
    return "<url>" if isinstance(value, str) else None


OneOrMore = Annotated[
    Annotated[Annotated[list[PictureUrl], Field(max_length=8)], Tag("<list>")] | Annotated[PictureUrl, Tag("<url>")],
    Discriminator(
        _kind,
        custom_error_type="picture_url_type",
        custom_error_message="Input should be the URL or data URI of a picture, or a list of them",
    ),
]
"""A picture, or up to eight."""


class PicturePrompt(BaseModel):
    """Pictures that say what to draw, as Redux does."""

    fill_image_url: OneOrMore | None = Field(default=[], description="URL or data URI, or a list.")

    def redux(self, needs: Needs) -> tuple[Redux, ...]:
        """The pictures as a condition; none if there are no pictures."""
        urls = self.fill_image_url
        if not urls:
            return ()
        loc = ("fill_image", "fill_image_url")
        if isinstance(urls, list):
            pictures = tuple(needs.picture(url, *loc, index) for index, url in enumerate(urls))
        else:
            pictures = (needs.picture(urls, *loc),)
        return (Redux(pictures, needs.checkpoint("redux")),)


class FillImage(PicturePrompt):
    """The same for a fill, which may leave the text aside."""

    in_context_fill: bool = Field(False, description="Must be false: open weights have no such mode.")
    use_prompt: bool = Field(False, description="Draw after the prompt, too.")

    @field_validator("in_context_fill")
    @classmethod
    def _is_off(cls, value: bool) -> bool:
        if value:
            raise PydanticCustomError("feature_not_supported", "in_context_fill is not supported by open weights")
        return value


class FluxLoraFill(Filled, GuidedAsUsual, LoraInput, SlightlyAccelerated, SizedOrLikePicture):
    """fal-ai/flux-lora-fill."""

    prompt: PromptText = Field("", description="What to draw in the mask; may be empty.")
    guidance_scale: Annotated[float, Field(ge=28, le=35, description="How tightly generation follows the text.")] = 30
    paste_back: bool = Field(True, description="Accepted; what the mask does not cover is always the picture's.")
    fill_image: FillImage | None = Field(None, description="Pictures that say what to draw in the mask.")
    resize_to_original: bool = Field(False, description="As large as the picture, whatever image_size says.")

    def text(self) -> str:
        fill = self.fill_image
        return "" if fill is not None and fill.fill_image_url and not fill.use_prompt else self.prompt

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        if self.resize_to_original:
            return LikePicture.pixels(self, max_pixels, pictures)
        return super().pixels(max_pixels, pictures)

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        filled = super().conditions(needs)
        return filled if self.fill_image is None else (*filled, *self.fill_image.redux(needs))
