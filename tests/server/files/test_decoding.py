"""Files of unknown making: what is read, what is refused, and that a bomb is refused by its header."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.files.decoding import Limits, PictureError, decode

ANY = Limits()


def quarters(width: int = 32, height: int = 16) -> Image.Image:
    """Red, green, blue and white quarters, row by row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = (255, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 255, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 255)
    pixels[height // 2 :, width // 2 :] = (255, 255, 255)
    return Image.fromarray(pixels)


def packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    target = BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    picture = decode(data, ANY)
    return np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 3)


def refusal(data: bytes, limits: Limits = ANY) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode(data, limits)
    return caught.value


@pytest.mark.parametrize(("kind", "options", "worst"), [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0)])
def test_lossless_files_give_their_pixels(kind: str, options: dict[str, Any], worst: int) -> None:
    assert np.array_equal(pixels_of(packed(quarters(), kind, **options)), np.asarray(quarters()))


def test_a_jpeg_is_close() -> None:
    read = pixels_of(packed(quarters(), "JPEG", quality=95, subsampling=0)).astype(int)
    assert np.abs(read - np.asarray(quarters())).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(orientation: int) -> None:
    """The file holds the picture turned away; its EXIF entry says how to turn it back."""
    away = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    stored = quarters() if away is None else quarters().transpose(away)
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = pixels_of(packed(stored, "PNG", exif=exif))
    assert np.array_equal(read, np.asarray(quarters()))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0" + b"\xff" * 100, b"\xff" * 100, b"Exif\0\0II*\0\xff\xff\xff\xff"],
    ids=["junk", "nothing but junk", "entries far away"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_exif_that_says_nothing_leaves_the_picture_as_it_is_stored(kind: str, exif: bytes) -> None:
    stored = packed(quarters(), kind, exif=exif)
    assert np.array_equal(pixels_of(stored), np.asarray(Image.open(BytesIO(stored)).convert("RGB")))


def test_exif_that_is_damaged_elsewhere_turns_the_picture_all_the_same() -> None:
    """Its other entries need not be readable, nor fit to be written again."""
    orientation = struct.pack(">HHII", 0x0112, 3, 1, 6 << 16)
    far_away = struct.pack(">HHII", 0x8769, 4, 1, 0xFFFFFFF0)
    entries = b"MM\0*" + struct.pack(">IH", 8, 2) + orientation + far_away + bytes(4)
    stored = quarters().transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(pixels_of(packed(stored, "PNG", exif=b"Exif\0\0" + entries)), np.asarray(quarters()))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (8, 8), 200)
    image = Image.fromarray(np.full((8, 8), 200 * 256 + 7, np.uint16)) if mode == "I;16" else grey.convert(mode)
    read = pixels_of(packed(image, "JPEG" if mode == "CMYK" else "PNG"))
    expected = 255 if mode == "1" else 200
    assert abs(int(read.mean()) - expected) <= (60 if mode == "1" else 3)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def sixteen_bits(*samples: int, clear: tuple[int, ...] = ()) -> bytes:
    """A PNG whose upper half has these samples of 16 bits, white and opaque below.

    Args: clear: its transparent colour.
    """
    pixels = np.full((8, 6, len(samples)), 0xFFFF, ">u2")
    pixels[:4] = samples
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[len(samples)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 8, 16, kind, 0, 0, 0))
    key = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) if clear else b""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + head + key + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("samples", "colour"),
    [
        ((0xFF80, 0x40FE, 0x0102), (255, 64, 1)),
        ((0x0000, 0x80FF, 0xFFFF), (0, 128, 255)),
        ((0xFF80, 0x40FE, 0x0102, 0x0000), (255, 64, 1)),  # what is transparent keeps its colour
        ((0x4142,), (65, 65, 65)),
        ((0x4142, 0x8000), (65, 65, 65)),
    ],
)
def test_of_16_bits_a_sample_the_upper_8_count(samples: tuple[int, ...], colour: tuple[int, int, int]) -> None:
    read = pixels_of(sixteen_bits(*samples))
    assert (read[:4] == colour).all()
    assert (read[4:] == 255).all()


@pytest.mark.parametrize(
    ("data", "clear"),
    [
        (sixteen_bits(0xFF80, 0x40FE, 0x0102, 0x4000), 255 - 0x40),
        (sixteen_bits(0x4142, 0x0000), 255),
        (sixteen_bits(0xFF80, 0x40FE, 0x0102, clear=(0xFF80, 0x40FE, 0x0102)), 255),
        (sixteen_bits(0x0003, 0x00FF, 0x4000, clear=(0x0003, 0x00FF, 0x4000)), 255),
        (sixteen_bits(0x4142, clear=(0x4142,)), 255),
    ],
    ids=["colours and alpha", "grey and alpha", "clear colour", "clear dark colour", "clear grey"],
)
def test_holes_of_16_bits_a_sample_are_where_it_is_transparent(data: bytes, clear: int) -> None:
    holes = decode(data, ANY, "holes")
    shades = np.frombuffer(holes.data, np.uint8).reshape(8, 6)
    assert (shades[:4] == clear).all()
    assert not shades[4:].any()


def test_only_the_transparent_grey_is_a_hole() -> None:
    holes = decode(sixteen_bits(0x4142, clear=(0xFFFF,)), ANY, "holes").data
    assert (holes[0], holes[-1]) == (0, 255)


INKS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 120, 40), (0, 0, 0), (255, 255, 255)]


def cmyk(colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The inks of a colour, with as much black as may be."""
    black = 255 - max(colour)
    return (*((255 - part - black) * 255 // max(255 - black, 1) for part in colour), black)  # type: ignore[return-value]


@pytest.mark.parametrize("colour", INKS)
def test_a_cmyk_jpeg_keeps_its_colours(colour: tuple[int, int, int]) -> None:
    """As Adobe's programs write it: inverted, with their marker."""
    data = packed(Image.new("CMYK", (16, 16), cmyk(colour)), "JPEG", quality=95)
    assert data[data.index(b"Adobe") + 11] == 0, "no transform: the samples are inks"
    assert np.abs(pixels_of(data).astype(int) - colour).max() <= 3


@pytest.mark.parametrize("colour", INKS)
def test_a_ycck_jpeg_keeps_its_colours(colour: tuple[int, int, int]) -> None:
    """Adobe's other kind: brightness and colour differences, which stand for the complement of what CMYK stores."""
    *inks, black = cmyk(colour)
    stored = Image.new("RGB", (1, 1), tuple(inks)).convert("YCbCr").getpixel((0, 0))
    assert isinstance(stored, tuple)
    # Pillow inverts what it writes, so the samples go in inverted; then the marker is told what they are.
    data = packed(Image.new("CMYK", (16, 16), (*(255 - part for part in stored), black)), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11
    read = pixels_of(data[:at] + b"\x02" + data[at + 1 :]).astype(int)
    assert np.abs(read - colour).max() <= 4


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = packed(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert pixels_of(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_other_pictures_name_the_supported_formats(kind: str) -> None:
    error = refusal(packed(quarters(), kind))
    assert (error.kind, error.ctx) == ("unsupported_image_format", {"supported_formats": ["jpeg", "png", "webp"]})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"RIFF0000WAVE",
        packed(quarters(), "PNG")[:60],
        packed(quarters(), "JPEG")[:300],
        b"\xff\xd8\xff",
    ],
)
def test_what_is_no_picture_or_is_cut_off_cannot_be_loaded(data: bytes) -> None:
    assert refusal(data).kind == "image_load_error"


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that unpacks to width x height."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(14143, 16), (8192, 8192), (20000, 20000), (65535, 65535)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    tracemalloc.start()
    error = refusal(bomb(*size))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error.kind == "image_too_large"
    assert error.ctx is not None
    assert error.ctx["max_width"] * error.ctx["max_height"] <= ANY.max_area
    assert max(error.ctx.values()) <= ANY.max_side
    assert peak < 1 << 22


def test_text_that_unpacks_to_much_is_no_picture() -> None:
    data = packed(quarters(), "PNG")
    text = chunk(b"zTXt", b"a\x00\x00" + zlib.compress(bytes(80_000_000)))
    assert refusal(data[:33] + text + data[33:]).kind == "image_load_error"


def test_limits_say_what_would_do() -> None:
    data = packed(quarters(64, 32), "PNG")
    error = refusal(data, Limits(max_area=512))
    assert (error.kind, error.ctx) == ("image_too_large", {"max_height": 16, "max_width": 32})
    error = refusal(data, Limits(min_side=33))
    assert (error.kind, error.ctx) == ("image_too_small", {"min_height": 33, "min_width": 33})
    assert decode(data, Limits(min_side=32, max_side=64, max_area=2048)).width == 64
