"""Pictures of any kind as masks: white is drawn anew, and a wider white where that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from server.files.decoding import Limits, decode
from server.files.masks import grown
from tests.server.files.test_decoding import packed


def mask_pixels(image: Image.Image, kind: str = "PNG", grow: int = 0) -> np.ndarray:
    read = decode(packed(image, kind), Limits(), "mask", grow)
    assert read.channels == 1
    return np.frombuffer(read.data, np.uint8).reshape(read.height, read.width)


def half(mode: str, off: object, on: object) -> Image.Image:
    """The left half off, the right half on."""
    image = Image.new(mode, (16, 8), off)  # type: ignore[arg-type]
    image.paste(on, (8, 0, 16, 8))  # type: ignore[arg-type]
    return image


@pytest.mark.parametrize(
    "image",
    [
        half("1", 0, 1),
        half("L", 0, 255),
        half("RGB", "black", "white"),
        half("RGBA", (0, 0, 0, 255), (255, 255, 255, 255)),
        half("RGBA", (255, 255, 255, 0), (255, 255, 255, 255)),
        half("LA", (255, 0), (255, 255)),
        half("P", 0, 1),
    ],
    ids=["bits", "grey", "colours", "opaque", "white brush on an empty layer", "grey and alpha", "palette"],
)
def test_every_kind_of_mask_says_the_same(image: Image.Image) -> None:
    if image.mode == "P":
        image.putpalette([0, 0, 0, 255, 255, 255])
    read = mask_pixels(image)
    assert read[:, :8].max() == 0
    assert read[:, 8:].min() == 255


def test_sixteen_bits_keep_their_shades() -> None:
    deep = Image.fromarray(np.repeat(np.array([[0, 256 * 100, 65535]], np.uint16), 4, axis=0))
    assert mask_pixels(deep)[0].tolist() == [0, 100, 255]


def test_soft_edges_stay_soft() -> None:
    assert mask_pixels(Image.new("L", (4, 4), 100)).tolist() == [[100] * 4] * 4


def test_a_mask_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = half("L", 0, 255).transpose(Image.Transpose.ROTATE_90)
    target = packed(stored, "PNG", exif=exif)
    read = decode(target, Limits(), "mask")
    assert (read.width, read.height) == (16, 8)
    assert np.frombuffer(read.data, np.uint8).reshape(8, 16)[:, 8:].min() == 255


@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 10])
def test_white_grows_by_so_many_pixels_to_every_side(pixels: int) -> None:
    dots = Image.new("L", (40, 30))
    for x, y in ((3, 4), (20, 15), (39, 29)):
        dots.putpixel((x, y), 200)
    padded = Image.new("L", (40 + 2 * pixels, 30 + 2 * pixels))
    padded.paste(dots, (pixels, pixels))
    expected = padded.filter(ImageFilter.MaxFilter(2 * pixels + 1)).crop((pixels, pixels, 40 + pixels, 30 + pixels))
    assert np.array_equal(np.asarray(grown(dots, pixels)), np.asarray(expected))


def test_growth_beyond_the_picture_is_all_white() -> None:
    assert mask_pixels(half("L", 0, 255), grow=256).min() == 255
