"""Pictures to look at, made ready on the host as diffusers' Flux3ImageProcessor does. Any thread may do it."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.modular_pipelines.flux3.image_processor import Flux3ImageProcessor
from torch import Tensor

from pipelines.pictures.fit import as_image
from pipelines.protocol.conditions import InputPicture

LARGEST = 4 * 1024 * 1024
"""Pixels of a reference that is alone; a larger picture is made smaller first."""


def references(pictures: Sequence[InputPicture], multiple: int) -> list[Tensor]:
    """Each (1, 3, H, W) in [-1, 1]: one alone is kept whole, its edges mirrored to whole cells; of several the middle.

    Args: multiple: side of a cell in pixels.
    """
    processor = Flux3ImageProcessor(vae_scale_factor=multiple)
    mode = "fill" if len(pictures) == 1 else "crop"
    images = [as_image(picture, "RGB") for picture in pictures]
    if mode == "crop":  # which takes whole cells of what is there: there must be one
        images = [image.resize((max(multiple, image.width), max(multiple, image.height))) for image in images]
    return [processor.preprocess(image, resize_mode=mode)[0] for image in images]
