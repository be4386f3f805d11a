"""Does a picture show what was asked? Only the embedded model draws what it is told, so only it is judged."""

from __future__ import annotations

import numpy as np
from PIL import Image

from models.shapes.scorer import read
from tests.acceptance.serving import MODEL


def assert_shows(picture: Image.Image, ground: str, things: list[tuple[str, str]]) -> None:
    """Fail unless the picture holds exactly these (colour, shape) pairs on this ground."""
    if MODEL != "flux-shapes":
        return
    reading = read(np.asarray(picture.convert("RGB")))
    assert reading.ground == ground, reading
    assert sorted((seen.colour, str(seen.shape)) for seen in reading.things) == sorted(things), reading
