"""Masks: any picture as shades of grey, white where it is to be drawn anew; runs in the pool's processes."""

from __future__ import annotations

from PIL import Image, ImageChops


def holes_of(image: Image.Image) -> Image.Image:
    """White where a picture is transparent, mode L; one without transparency is a mask like any other."""
    if not _has_alpha(image) or (alpha := image.convert("RGBA").getchannel("A")).getextrema() == (255, 255):
        return mask_of(image)
    return ImageChops.invert(alpha)


def mask_of(image: Image.Image) -> Image.Image:
    """A picture of any mode as a mask, mode L.

    What is transparent is kept as if it were black: people paint masks with a white brush on an empty layer.
    """
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        return ImageChops.multiply(rgba.convert("RGB").convert("L"), rgba.getchannel("A"))
    return image.convert("L")


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "a" in image.getbands()


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
