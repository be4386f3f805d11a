"""Does a picture show what was asked? Only the embedded model draws what it is told, so only it is judged."""

from __future__ import annotations

import numpy as np
from PIL import Image

from models.shapes.scorer import read
from tests.acceptance.serving import MODEL


def assert_holds(picture: Image.Image, ground: str, colour: str) -> None:
    """Fail unless the picture holds one thing of this colour on this ground."""
    if MODEL != "flux-shapes":
        return
    reading = read(np.asarray(picture.convert("RGB")))
    assert (reading.ground, [seen.colour for seen in reading.things]) == (ground, [colour]), reading


def is_right(picture: Image.Image, ground: str, colour: str, shape: str) -> bool:
    """Whether the picture holds just this shape in this colour on this ground."""
    reading = read(np.asarray(picture.convert("RGB")))
    return (reading.ground, [(seen.colour, seen.shape) for seen in reading.things]) == (ground, [(colour, shape)])


def distance_to(colour: tuple[int, int, int], picture: Image.Image) -> float:
    """How far the median colour of what stands out from the ground is from this one, in levels of 255 over RGB."""
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3).astype(float)
    away = np.linalg.norm(pixels - np.median(pixels, axis=0), axis=1)
    return float(np.linalg.norm(np.median(pixels[away > away.max() / 2], axis=0) - colour))
