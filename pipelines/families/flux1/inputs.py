"""A request's pictures as tensors: encoded, masked, packed. Everything here runs once, at admission."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor
from torch.nn import functional

from models.components import FluxComponents
from pipelines.engine.request import RequestError
from pipelines.families.flux1.conditioning import Hold
from pipelines.families.flux1.sampling import pack_latents, pack_mask
from pipelines.pictures.canny import edges
from pipelines.pictures.fit import Size, as_image, fit, pad, to_mask, to_tensor
from pipelines.pictures.latents import Encoded
from pipelines.pictures.overlay import Overlay
from pipelines.protocol.conditions import Control, ControlNet, Fill, ImageToImage, Inpaint, InputPicture, Reference
from pipelines.protocol.params import GenerationParams

Depth = Callable[[Image.Image], Tensor]
"""A picture's depth, (1, 3, H, W) in [-1, 1], near is bright."""

KONTEXT_SIZES: tuple[Size, ...] = (
    (672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104),
    (1024, 1024),
    (1104, 944), (1184, 880), (1248, 832), (1328, 800), (1392, 752), (1456, 720), (1504, 688), (1568, 672),
)  # fmt: skip
"""What FLUX.1-Kontext-dev saw in training. Source: diffusers' FluxKontextPipeline."""


@dataclass(slots=True)
class Inputs:
    """What pictures contribute to the rows of a request.

    Args:
        start: the picture to start from.
        guides: whose latents ControlNets see, one for each in order.
        control: whose latents stand beside the drawn ones.
        masked: the picture without what is to be filled; `cells`: (N, X) its packed mask.
        references: (1, C, h, w) latents of each picture to look at.
        hold, overlay: see Conditioning.
    """

    start: Encoded | None = None
    guides: list[Encoded] = field(default_factory=list)
    control: Encoded | None = None
    masked: Encoded | None = None
    cells: Tensor | None = None
    references: list[Tensor] = field(default_factory=list)
    hold: Hold | None = None
    overlay: Overlay | None = None


class PictureReader:
    """Reads the pictures of one request.

    Args: drawn: (height, width) in pixels of the first phase. depth: None if nothing here can tell a picture's depth.
    """

    def __init__(
        self,
        components: FluxComponents,
        params: GenerationParams,
        pictures: Sequence[InputPicture],
        drawn: tuple[int, int],
        depth: Depth | None,
    ) -> None:
        self._components = components
        self._params = params
        self._pictures = pictures
        self._drawn = drawn[1], drawn[0]
        self._depth = depth

    def read(self) -> Inputs:
        """Raises: RequestError naming the condition's field that is at fault."""
        inputs = Inputs()
        for condition in self._params.conditions:
            match condition:
                case ImageToImage():
                    inputs.start = self._encoded(to_tensor(self._image(condition.picture)))
                case Inpaint():
                    self._inpaint(condition, inputs)
                case Fill():
                    self._fill(condition, inputs)
                case Control():
                    kind = None if condition.is_prepared else condition.control
                    inputs.control = self._encoded(self._guide(condition.picture, kind, condition.kind))
                case ControlNet():
                    guide = self._guide(condition.picture, condition.control, condition.kind)
                    inputs.guides.append(self._encoded(guide))
                case Reference():
                    inputs.references = [self._reference(index) for index in condition.pictures]
        return inputs

    def _inpaint(self, condition: Inpaint, inputs: Inputs) -> None:
        mask = self._image(condition.mask, "L")
        levels = to_mask(mask, is_hard=not condition.is_differential)
        cell = self._components.vae_scale_factor
        # A latent cell may change if any of its pixels may: what is around them is put back in the end.
        pool = functional.avg_pool2d if condition.is_differential else functional.max_pool2d
        cells = pool(levels, cell).expand(1, self._components.latent_channels, -1, -1)
        inputs.start = self._encoded(to_tensor(self._image(condition.picture)))
        inputs.hold = Hold(self._packed(cells), self._params.num_steps, condition.is_differential)
        inputs.overlay = self._overlay(condition.picture, condition.mask, blends=not condition.is_differential)

    def _fill(self, condition: Fill, inputs: Inputs) -> None:
        picture = to_tensor(self._image(condition.picture))
        mask = to_mask(self._image(condition.mask, "L"), is_hard=True)
        inputs.masked = self._encoded(picture * (1 - mask))
        inputs.cells = self._on_device(pack_mask(mask, self._components.vae_scale_factor))
        inputs.overlay = self._overlay(condition.picture, condition.mask)

    def _guide(self, index: int, control: str | None, kind: str) -> Tensor:
        """A picture of edges or depth, (1, 3, H, W) in [-1, 1]; of another picture if `control` says which."""
        image = self._image(index)
        if control == "canny":
            image = edges(image)
        if control == "depth" and self._depth is None:
            raise RequestError("no model here can tell the depth of a picture: send a depth picture", (kind, "picture"))
        guide = self._depth(image) if control == "depth" and self._depth is not None else to_tensor(image)
        # Convolutions round differently by memory layout: diffusers repeats guides, so theirs is always this one.
        return guide.contiguous()

    def _reference(self, index: int) -> Tensor:
        """The latents (1, C, h, w) of a picture to look at, at the size that the checkpoint was trained on."""
        if self._components.spec.keeps_reference_size:
            return self._encoded(to_tensor(self._image(index))).mode()
        image = as_image(self._pictures[index], "RGB")
        ratio, multiple = image.width / image.height, self._components.size_multiple
        _, width, height = min((abs(ratio - w / h), w, h) for w, h in KONTEXT_SIZES)
        size = (width // multiple * multiple, height // multiple * multiple)
        return self._encoded(to_tensor(fit(self._pictures[index], size))).mode()

    def _image(self, index: int, mode: str = "RGB") -> Image.Image:
        """A picture in the size of the first phase."""
        return pad(fit(self._pictures[index], self._delivered, mode), self._drawn)

    def _overlay(self, picture: int, mask: int, blends: bool = True) -> Overlay:
        images = fit(self._pictures[picture], self._delivered), fit(self._pictures[mask], self._delivered, "L")
        return Overlay.of(*images, self._components.device, blends)

    @property
    def _delivered(self) -> Size:
        """(width, height) of the output, or of the first phase where that is smaller."""
        return min(self._params.width, self._drawn[0]), min(self._params.height, self._drawn[1])

    def _encoded(self, pixels: Tensor) -> Encoded:
        return Encoded(self._components.vae, pixels, self._components.dtype)

    def _packed(self, latents: Tensor) -> Tensor:
        return self._on_device(pack_latents(latents)[0])

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._components.device, self._components.dtype)
