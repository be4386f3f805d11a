"""A request's picture and mask made ready on the host, so any thread may do it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipelines.engine.request import Request
from pipelines.families.sdxl.limits import SdxlLimits
from pipelines.pictures.fit import fit, pad, to_mask, to_tensor
from pipelines.pictures.overlay import Overlay
from pipelines.protocol.conditions import ImageToImage, Inpaint


@dataclass(frozen=True, slots=True)
class Prepared:
    """Args: start: (1, 3, H, W) in [-1, 1]. mask: (1, 1, h, w), 1 to draw anew. overlay: pixels to put back."""

    start: Tensor | None = None
    mask: Tensor | None = None
    overlay: Overlay | None = None


def prepared(request: Request, limits: SdxlLimits) -> Prepared:
    """The pictures of one request in the size that is drawn."""
    params = request.params
    height, width = limits.drawn(params)
    delivered = params.width, params.height

    def image(index: int, mode: str) -> Image.Image:
        return fit(request.pictures[index], delivered, mode)

    if (inpaint := params.find(Inpaint)) is not None:
        picture, mask = image(inpaint.picture, "RGB"), image(inpaint.mask, "L")
        levels = to_mask(pad(mask, (width, height)), is_hard=True)
        # A latent cell may change if any of its pixels may: what is around them is put back in the end.
        cells = functional.max_pool2d(levels, limits.size_multiple)
        return Prepared(to_tensor(pad(picture, (width, height))), cells, Overlay.of(picture, mask))
    if (start := params.find(ImageToImage)) is not None:
        return Prepared(to_tensor(pad(image(start.picture, "RGB"), (width, height))))
    return Prepared()
