"""A request's pictures made ready on the host: read, resized, masked. No device takes part, so any thread may do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.auxiliaries import ReduxPrior
from models.components import FluxComponents
from pipelines.families.flux1.sampling import pack_latents, pack_mask
from pipelines.pictures.canny import edges
from pipelines.pictures.fit import Size, as_image, fit, pad, to_mask, to_tensor
from pipelines.pictures.overlay import Overlay
from pipelines.pictures.redux import pixels_for
from pipelines.protocol.conditions import (
    Condition,
    Control,
    ControlNet,
    Fill,
    ImageToImage,
    Inpaint,
    InputPicture,
    Redux,
    Reference,
)
from pipelines.protocol.params import GenerationParams

KONTEXT_SIZES: tuple[Size, ...] = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024),
    (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip
"""What FLUX.1-Kontext-dev saw in training. Source: diffusers' FluxKontextPipeline."""

Guide = Tensor | Image.Image
"""A picture to follow, (1, 3, H, W) in [-1, 1]; an image where its depth is still to be told."""


@dataclass(slots=True)
class Prepared:
    """The pictures of a request as the encoders take them; pixels are (1, 3, H, W) in [-1, 1].

    Args:
        start: the picture to start from.
        guides: for ControlNets, one for each in order.
        control: the picture to follow by latents beside the drawn ones.
        masked: the picture without what is to be filled, and `cells`: (N, X) its packed mask.
        references: pictures to look at.
        seen: what a Redux prior sees of each of its pictures.
        mask: (N, C) how much may change of the picture to start from, 1 all; is_differential: see Hold.
        overlay: the pixels to put back in the end.
    """

    start: Tensor | None = None
    guides: list[Guide] = field(default_factory=list)
    control: Guide | None = None
    masked: Tensor | None = None
    cells: Tensor | None = None
    references: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    mask: Tensor | None = None
    is_differential: bool = False
    overlay: Overlay | None = None


class PictureReader:
    """Reads the pictures of one request.

    Args: drawn: (height, width) in pixels of the first phase. prior: of requests that bring Redux pictures.
    """

    def __init__(
        self,
        components: FluxComponents,
        params: GenerationParams,
        pictures: Sequence[InputPicture],
        drawn: tuple[int, int],
        prior: ReduxPrior | None,
    ) -> None:
        self._components = components
        self._pictures = pictures
        self._drawn = drawn[1], drawn[0]
        self._delivered = min(params.width, drawn[1]), min(params.height, drawn[0])
        self._conditions = params.conditions
        self._prior = prior

    def read(self) -> Prepared:
        prepared = Prepared()
        for condition in self._conditions:
            self._add(condition, prepared)
        return prepared

    def _add(self, condition: Condition, prepared: Prepared) -> None:
        match condition:
            case ImageToImage():
                prepared.start = to_tensor(self._image(condition.picture))
            case Inpaint():
                self._inpaint(condition, prepared)
            case Fill():
                self._fill(condition, prepared)
            case Control():
                kind = None if condition.is_prepared else condition.control
                prepared.control = self._guide(condition.picture, kind)
            case ControlNet():
                prepared.guides.append(self._guide(condition.picture, condition.control))
            case Reference():
                prepared.references = [self._reference(index) for index in condition.pictures]
            case Redux() if self._prior is not None:
                images = [as_image(self._pictures[index], "RGB") for index in condition.pictures]
                prepared.seen = [pixels_for(self._prior, image) for image in images]

    def _inpaint(self, condition: Inpaint, prepared: Prepared) -> None:
        levels = to_mask(self._image(condition.mask, "L"), is_hard=not condition.is_differential)
        # A latent cell may change if any of its pixels may: what is around them is put back in the end.
        pool = functional.avg_pool2d if condition.is_differential else functional.max_pool2d
        cells = pool(levels, self._components.vae_scale_factor)
        prepared.start = to_tensor(self._image(condition.picture))
        prepared.mask = pack_latents(cells.expand(1, self._components.latent_channels, -1, -1))[0]
        prepared.is_differential = condition.is_differential
        prepared.overlay = self._overlay(condition.picture, condition.mask, blends=not condition.is_differential)

    def _fill(self, condition: Fill, prepared: Prepared) -> None:
        picture = to_tensor(self._image(condition.picture))
        mask = to_mask(self._image(condition.mask, "L"), is_hard=True)
        prepared.masked = picture * (1 - mask)
        prepared.cells = pack_mask(mask, self._components.vae_scale_factor)
        prepared.overlay = self._overlay(condition.picture, condition.mask)

    def _guide(self, index: int, control: str | None) -> Guide:
        image = self._image(index)
        if control == "depth":
            return image
        return to_tensor(edges(image) if control == "canny" else image)

    def _reference(self, index: int) -> Tensor:
        """A picture to look at, at the size that the checkpoint was trained on."""
        if self._components.spec.keeps_reference_size:
            return to_tensor(self._image(index))
        picture, multiple = self._pictures[index], self._components.size_multiple
        _, width, height = min((abs(picture.width / picture.height - w / h), w, h) for w, h in KONTEXT_SIZES)
        return to_tensor(fit(picture, (width // multiple * multiple, height // multiple * multiple)))

    def _image(self, index: int, mode: str = "RGB") -> Image.Image:
        """A picture in the size of the first phase."""
        return pad(fit(self._pictures[index], self._delivered, mode), self._drawn)

    def _overlay(self, picture: int, mask: int, blends: bool = True) -> Overlay:
        images = fit(self._pictures[picture], self._delivered), fit(self._pictures[mask], self._delivered, "L")
        return Overlay.of(*images, blends)
