"""Pictures to look at, made ready on the host as Flux2KleinPipeline does. Any thread may do it."""

from __future__ import annotations

from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image
from torch import Tensor

from pipelines.pictures.fit import as_image, to_tensor
from pipelines.protocol.conditions import SEEN_AREA, InputPicture


def reference(picture: InputPicture, multiple: int) -> Tensor:
    """(1, 3, H, W) in [-1, 1]: at most a megapixel, its middle in whole cells.

    Args: multiple: side of a cell in pixels.
    """
    image = Flux2ImageProcessor._resize_if_exceeds_area(as_image(picture, "RGB"), SEEN_AREA)
    image = _at_least(image, multiple)
    width, height = (side // multiple * multiple for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return to_tensor(image.crop((left, top, left + width, top + height)))


def _at_least(image: Image.Image, side: int) -> Image.Image:
    """One that is narrower than a cell is stretched to it."""
    if min(image.size) >= side:
        return image
    return image.resize((max(side, image.width), max(side, image.height)), Image.Resampling.LANCZOS)
