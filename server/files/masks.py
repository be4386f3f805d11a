"""Masks: any picture as shades of grey, white where it is to be drawn anew; runs in the pool's processes."""

from __future__ import annotations

from PIL import Image, ImageChops


def mask_of(image: Image.Image) -> Image.Image:
    """A picture of any mode as a mask, mode L.

    What is transparent is kept as if it were black: people paint masks with a white brush on an empty layer.
    """
    if "A" in image.getbands() or "a" in image.getbands():
        rgba = image.convert("RGBA")
        return ImageChops.multiply(rgba.convert("RGB").convert("L"), rgba.getchannel("A"))
    return image.convert("L")


def grown(mask: Image.Image, pixels: int) -> Image.Image:
    """The mask with its white widened by so many pixels to each side and corner, clipped at the edges."""
    return _widened(_widened(mask, pixels, 1, 0), pixels, 0, 1)


def _widened(mask: Image.Image, pixels: int, across: int, down: int) -> Image.Image:
    """Widened along one axis: every pass doubles how far white has come, so that the cost grows by the logarithm."""
    reached = 0
    while reached < pixels:
        step = min(reached + 1, pixels - reached)
        forth = _shifted(mask, step * across, step * down)
        back = _shifted(mask, -step * across, -step * down)
        mask = ImageChops.lighter(mask, ImageChops.lighter(forth, back))
        reached += step
    return mask


def _shifted(mask: Image.Image, dx: int, dy: int) -> Image.Image:
    """The mask moved by (dx, dy), black where nothing comes from."""
    moved = Image.new("L", mask.size)
    moved.paste(mask, (dx, dy))
    return moved
