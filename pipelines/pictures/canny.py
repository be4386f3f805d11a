"""Edges of a picture, as checkpoints that follow edges were trained on them."""

from __future__ import annotations

import numpy as np
from PIL import Image

THRESHOLDS = (50, 200)
"""Weak and strong edges of cv2.Canny: those of Black Forest Labs' own encoder for FLUX.1-Canny-dev."""


def edges(image: Image.Image) -> Image.Image:
    """White lines, one pixel wide, on black: RGB of the same size."""
    import cv2  # a quarter of a second that most workers never need

    lines = cv2.Canny(np.asarray(image), *THRESHOLDS)
    return Image.fromarray(lines).convert("RGB")
