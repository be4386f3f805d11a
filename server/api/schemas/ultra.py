"""The inputs of fal's ultra endpoints: about 4 megapixels by aspect ratio, perhaps after a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from pipelines.protocol.conditions import Condition, Redux, Refine
from server.api.schemas.base import Prompted, Repeatable, Steered, Tolerant
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import PictureUrl
from server.api.schemas.sizes import ULTRA_4MP, Size, pixels_of_ratio, shrink


class ByRatio(Repeatable, Tolerant):
    """What both have in common."""

    aspect_ratio: str = Field("16:9", description="width:height, from 21:9 to 9:21.")
    raw: bool = Field(False, description="Accepted; open weights have no such switch.")
    image_prompt_strength: float = Field(
        0.1, ge=0, le=1, description="Blend between the text (0) and the picture (1). Without a text, the picture."
    )

    @field_validator("aspect_ratio")
    @classmethod
    def _is_ratio(cls, value: str) -> str:
        match = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", value)
        width, height = (int(match[1]), int(match[2])) if match else (0, 0)
        if not width or not height or not 9 / 21 <= width / height <= 21 / 9:
            raise PydanticCustomError("aspect_ratio", "Input should be width:height, between 21:9 and 9:21")
        return value

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        listed = ULTRA_4MP.get(self.aspect_ratio)
        if listed is None:
            width, height = self.aspect_ratio.split(":")
            listed = pixels_of_ratio(int(width), int(height))
        return shrink(*listed, max_pixels)

    def blend(self, image_url: PictureUrl, needs: Needs) -> Redux:
        """The picture and the text, each with its share."""
        picture = needs.picture(image_url, "image_url")
        has_text = bool(self.text().strip())
        share = self.image_prompt_strength if has_text else 1.0
        text_share = 1.0 - share if has_text else 1.0
        return Redux((picture,), needs.checkpoint("redux"), strength=share, prompt_strength=text_share)


class FluxProUltra(Prompted, ByRatio):
    """fal-ai/flux-pro/v1.1-ultra."""

    image_url: PictureUrl | None = Field(None, description="URL or data URI of a picture to remix.")

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (*(() if self.image_url is None else (self.blend(self.image_url, needs),)), Refine())


class FluxProUltraRedux(Steered, ByRatio):
    """fal-ai/flux-pro/v1.1-ultra/redux."""

    image_url: PictureUrl

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (self.blend(self.image_url, needs), Refine())
