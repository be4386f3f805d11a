"""Picture sizes in fal's words: presets, explicit sides, aspect ratios; and the pixels they mean."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

MAX_SIDE = 14142
Size = tuple[int, int]
"""(width, height) in pixels."""

PRESETS: dict[str, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
ULTRA_4MP: dict[str, tuple[int, int]] = {
    "21:9": (3136, 1344),
    "16:9": (2752, 1536),
    "4:3": (2368, 1792),
    "3:2": (2496, 1664),
    "1:1": (2048, 2048),
    "2:3": (1664, 2496),
    "3:4": (1792, 2368),
    "9:16": (1536, 2752),
    "9:21": (1344, 3136),
}
KONTEXT_1MP: dict[str, tuple[int, int]] = {
    "21:9": (1568, 672),
    "16:9": (1392, 752),
    "4:3": (1184, 880),
    "3:2": (1248, 832),
    "1:1": (1024, 1024),
    "2:3": (832, 1248),
    "3:4": (880, 1184),
    "9:16": (752, 1392),
    "9:21": (672, 1568),
}
AspectRatio = Literal["21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21"]
Preset = Literal["square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"]


class ImageSize(BaseModel):
    """Explicit sides in pixels."""

    width: int = Field(512, gt=0, le=MAX_SIDE, description="Width in pixels.")
    height: int = Field(512, gt=0, le=MAX_SIDE, description="Height in pixels.")

    def pixels(self) -> Size:
        """(width, height)."""
        return self.width, self.height


def _kind(value: Any) -> str | None:
    """Which alternative a value of `image_size` means, so that its errors speak of that one alone."""
    if isinstance(value, dict | ImageSize):
        return "<object>"
    return "<preset>" if isinstance(value, str) else None


SizeField = Annotated[
    Annotated[ImageSize, Tag("<object>")] | Annotated[Preset, Tag("<preset>")],
    Discriminator(
        _kind,
        custom_error_type="image_size_type",
        custom_error_message=f"Input should be one of {', '.join(PRESETS)}, or an object with width and height",
    ),
]
"""`image_size`: a preset's name or sides."""


def pixels_of(size: ImageSize | Preset) -> Size:
    """(width, height) of a validated `image_size`."""
    return size.pixels() if isinstance(size, ImageSize) else PRESETS[size]


def pixels_of_ratio(width: int, height: int, area: int = 2048 * 2048, multiple: int = 32) -> Size:
    """(width, height) closest to `area` pixels with that ratio, both multiples of `multiple`."""
    exact = math.sqrt(area * width / height)
    return _round(exact, multiple), _round(area / exact, multiple)


def shrink(width: int, height: int, max_pixels: int, multiple: int = 32) -> Size:
    """The same shape within `max_pixels`: unchanged if it fits, else rounded down to `multiple`."""
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    sides = (int(side * scale) // multiple * multiple for side in (width, height))
    smaller_width, smaller_height = (max(multiple, side) for side in sides)
    return smaller_width, smaller_height


def nearest_ratio(table: dict[str, Size], size: Size) -> Size:
    """The entry of `table` whose shape is most like that of `size`."""
    wanted = math.log(size[0] / size[1])
    return min(table.values(), key=lambda entry: abs(math.log(entry[0] / entry[1]) - wanted))


def _round(side: float, multiple: int) -> int:
    return max(multiple, round(side / multiple) * multiple)
