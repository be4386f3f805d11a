"""Prepared pictures on the device: encoded and packed, once a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from models.components import FluxComponents
from pipelines.engine.request import RequestError
from pipelines.families.flux1.conditioning import Hold
from pipelines.families.flux1.prepare import Guide, Prepared
from pipelines.pictures.latents import Encoded
from pipelines.pictures.overlay import Overlay

Depth = Callable[[Image.Image], Tensor]
"""A picture's depth, (1, 3, H, W) in [-1, 1], near is bright."""


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What pictures contribute to the rows of a request; see Prepared.

    Args: references: (1, C, h, w) latents of each picture to look at. hold, overlay: see Conditioning.
    """

    start: Encoded | None
    guides: tuple[Encoded, ...]
    control: Encoded | None
    masked: Encoded | None
    cells: Tensor | None
    references: tuple[Tensor, ...]
    hold: Hold | None
    overlay: Overlay | None


def encode(
    components: FluxComponents, prepared: Prepared, steps: int, depth: Depth | None, upload: Callable[[Tensor], Tensor]
) -> Inputs:
    """Args: steps: of the request. depth: None if nothing here can tell how near things are. upload: to the device.

    Raises: RequestError if a picture's depth is asked for and nothing here can tell it.
    """
    dtype = components.dtype

    def encoded(pixels: Tensor | None) -> Encoded | None:
        return None if pixels is None else Encoded(components.vae, upload(pixels), dtype)

    def guide(wanted: Guide, kind: str) -> Encoded:
        pixels = upload(wanted) if isinstance(wanted, Tensor) else _depth(wanted, depth, kind)
        # Convolutions round differently by memory layout: diffusers repeats guides, so theirs is always this one.
        return Encoded(components.vae, pixels.contiguous(), dtype)

    mask = prepared.mask
    return Inputs(
        start=encoded(prepared.start),
        guides=tuple(guide(each, "controlnet") for each in prepared.guides),
        control=None if prepared.control is None else guide(prepared.control, "control"),
        masked=encoded(prepared.masked),
        cells=None if prepared.cells is None else upload(prepared.cells).to(dtype),
        references=tuple(Encoded(components.vae, upload(pixels), dtype).mode() for pixels in prepared.references),
        hold=None if mask is None else Hold(upload(mask).to(dtype), steps, prepared.is_differential),
        overlay=None if prepared.overlay is None else prepared.overlay.moved(upload),
    )


def _depth(image: Image.Image, depth: Depth | None, kind: str) -> Tensor:
    if depth is None:
        raise RequestError("no model here can tell the depth of a picture: send a depth picture", (kind, "picture"))
    return depth(image)
