"""A picture file of unknown making to pixels; runs in the pool's processes, so it imports Pillow and no more.

The bytes alone decide what they are: a declared type is never believed, and no decoder runs but the three of
FORMATS. The size is read from the header first, so that a small file of a huge picture costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

from PIL import ExifTags, Image, ImageFile

from server.files.foreign_formats import is_foreign_picture
from server.files.masks import grown, holes_of, mask_of

FORMATS = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "WEBP": b"RIFF"}
"""What is read, by the bytes that it begins with."""

SUPPORTED = ["jpeg", "png", "webp"]

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture of an EXIF orientation upright. Source: PIL.ImageOps.exif_transpose."""

Reading = Literal["colours", "mask", "holes"]
"""How a picture is understood: as what it shows, as shades that say where to draw, or as holes to draw in."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a picture may measure, in pixels; `max_area` binds what decoding may cost."""

    min_side: int = 1
    max_side: int = 14142
    max_area: int = 1 << 25


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded picture, upright: height x width x channels bytes, row major; 3 for RGB, 1 for a mask.

    Args: file_size: (width, height) in its file, if it was made smaller.
    """

    data: bytes
    width: int
    height: int
    channels: int = 3
    file_size: tuple[int, int] | None = None

    @property
    def given_size(self) -> tuple[int, int]:
        """(width, height) as the caller gave it."""
        return self.file_size or (self.width, self.height)


class PictureError(Exception):
    """The file cannot be used; arguments are fal's error type, a sentence, and its context."""

    def __init__(self, kind: str, message: str, ctx: dict[str, Any] | None = None) -> None:
        super().__init__(kind, message, ctx)
        self.kind, self.message, self.ctx = kind, message, ctx


def decode(
    data: bytes, limits: Limits, reading: Reading = "colours", grow: int = 0, seen_area: int | None = None
) -> Pixels:
    """The first frame of a PNG, JPEG or WebP file as pixels, turned as its EXIF orientation says, if that can be read.

    Transparency of colours is dropped, as diffusers' `load_image` does; see `mask_of` for that of masks, whose white
    is widened by `grow` pixels. What is larger than `seen_area` pixels is made smaller; see `_shrunk`.
    Raises: PictureError `unsupported_image_format`, `image_load_error`, `image_too_large` or `image_too_small`.
    """
    name = _format(data)
    try:
        with Image.open(BytesIO(data), formats=[name]) as image:
            _check(*image.size, limits)
            shades = _eight_bits(image)
            upright = _turned(_understood(shades, reading))
            upright = grown(upright, grow) if grow else upright
            seen = upright if seen_area is None else _shrunk(upright, seen_area)
            file_size = None if seen is upright else upright.size
            return Pixels(seen.tobytes(), *seen.size, channels=len(seen.getbands()), file_size=file_size)
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError as exc:
        raise PictureError("image_too_large", "The picture is far too large", _sides(limits)) from exc
    except Exception as exc:
        # Whatever a decoder may stumble over in bytes that somebody made up: there is no list of it.
        raise PictureError("image_load_error", f"The {name} picture is damaged and cannot be read") from exc


def _format(data: bytes) -> str:
    """Which of FORMATS the bytes are."""
    for name, start in FORMATS.items():
        if data.startswith(start) and (name != "WEBP" or data[8:12] == b"WEBP"):
            return name
    if is_foreign_picture(data):
        msg = "Pictures must be JPEG, PNG or WebP"
        raise PictureError("unsupported_image_format", msg, {"supported_formats": SUPPORTED})
    raise PictureError("image_load_error", "The file is not a picture")


def _check(width: int, height: int, limits: Limits) -> None:
    scale = min(math.sqrt(limits.max_area / (width * height)), limits.max_side / max(width, height))
    if scale < 1:
        # The limits are an area and a side; the context states them for a picture of this shape.
        largest = {"max_height": max(1, int(height * scale)), "max_width": max(1, int(width * scale))}
        msg = f"{width}x{height} is too large: at most {largest['max_width']}x{largest['max_height']} in this shape"
        raise PictureError("image_too_large", msg, largest)
    if min(width, height) < limits.min_side:
        msg = f"{width}x{height} is too small: each side must have {limits.min_side} pixels"
        raise PictureError("image_too_small", msg, {"min_height": limits.min_side, "min_width": limits.min_side})


def _sides(limits: Limits) -> dict[str, int]:
    side = min(limits.max_side, math.isqrt(limits.max_area))
    return {"max_height": side, "max_width": side}


def _shrunk(image: Image.Image, area: int) -> Image.Image:
    """The picture with at most so many pixels. Source: diffusers, Flux2ImageProcessor._resize_if_exceeds_area."""
    scale = math.sqrt(area / (image.width * image.height))
    if scale >= 1:
        return image
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _turned(image: Image.Image) -> Image.Image:
    """The picture upright, or as it is stored where its EXIF block is damaged: viewers show such pictures, too.

    `ImageOps.exif_transpose` also writes the block anew, and stumbles over entries that do not matter here.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        # Whatever its parser may stumble over, as in `decode`.
        return image
    return image if turn is None else image.transpose(turn)


def _understood(image: Image.Image, reading: Reading) -> Image.Image:
    if reading == "colours":
        return image.convert("RGB")
    return mask_of(image) if reading == "mask" else holes_of(image)


def _eight_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Any mode with 8 bits a sample and its transparency, if any, as a channel."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        # 16 bits a sample, which Pillow's own conversion would clip to the lowest 8.
        levels = image.convert("I")
        grey = levels.point(lambda value: value * (1 / 256)).convert("L")
        if clear is None:
            return grey
        return Image.merge("LA", (grey, levels.point([255 * (level != clear) for level in range(1 << 16)], "L")))
    if clear is not None and image.tile and image.tile[0].args == "RGB;16B":
        # Pillow reads the upper 8 bits of every sample, but leaves the clear colour its 16.
        image.info["transparency"] = tuple(level >> 8 for level in clear)
    return image.convert("RGBA") if clear is not None else image
