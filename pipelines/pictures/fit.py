"""A request's pictures at the size that is drawn, as diffusers' image processors make them."""

from __future__ import annotations

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from pipelines.protocol.conditions import InputPicture

Size = tuple[int, int]
"""(width, height) in pixels."""

_PICTURES = VaeImageProcessor(do_resize=False)
_MASKS = VaeImageProcessor(do_resize=False, do_normalize=False, do_convert_grayscale=True)
_HARD_MASKS = VaeImageProcessor(do_resize=False, do_normalize=False, do_convert_grayscale=True, do_binarize=True)


def as_image(picture: InputPicture, mode: str) -> Image.Image:
    """The picture for Pillow, as "RGB" or "L"."""
    image = Image.frombytes("L" if picture.channels == 1 else "RGB", picture.size, picture.pixels)
    return image if image.mode == mode else image.convert(mode)


def fit(picture: InputPicture, wanted: Size, mode: str = "RGB") -> Image.Image:
    """The picture at the size that is delivered; one that has it comes back as it is."""
    image = as_image(picture, mode)
    return image if image.size == wanted else image.resize(wanted, Image.Resampling.LANCZOS)


def pad(image: Image.Image, drawn: Size) -> Image.Image:
    """The picture in the middle of what is drawn, its edges repeated outwards: where `crop_centred` will look."""
    if image.size == drawn:
        return image
    across, down = drawn[0] - image.width, drawn[1] - image.height
    sides = [(down // 2, down - down // 2), (across // 2, across - across // 2)]
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, [*sides, (0, 0)][: pixels.ndim], mode="edge"))


def to_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) float32 in [-1, 1]."""
    tensor: Tensor = _PICTURES.preprocess(image)
    return tensor


def to_mask(image: Image.Image, is_hard: bool) -> Tensor:
    """(1, 1, H, W) float32 in [0, 1], 1 where it is white; a hard one is 0 or 1."""
    tensor: Tensor = (_HARD_MASKS if is_hard else _MASKS).preprocess(image)
    return tensor
