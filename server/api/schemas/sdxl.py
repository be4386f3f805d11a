"""The inputs of fal's SDXL endpoints: Playground v2.5 and SDXL-Lightning, from text, from a picture, behind a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from pipelines.protocol.conditions import Condition, ImageToImage, Inpaint
from server.api.schemas.base import (
    Checked,
    Guided,
    OutputFormat,
    Prompted,
    PromptText,
    Seeded,
    Sized,
    WideGuidance,
    as_digit,
)
from server.api.schemas.needs import Needs
from server.api.schemas.pictures import MaskUrl, PictureUrl
from server.api.schemas.sizes import Size, SizeField, shrink

PlaygroundStrength = Annotated[
    float, Field(ge=0.05, le=1, description="How much is drawn anew: 1 ignores the picture, values near 0 keep it.")
]
MaskedStrength = Annotated[float, Field(ge=0.01, le=1, description="How much is drawn anew behind the mask.")]


FewSteps = Annotated[
    Literal["1", "2", "4", "8"],
    BeforeValidator(as_digit, json_schema_input_type=Literal["1", "2", "4", "8", 1, 2, 4, 8]),
    Field(description="Number of denoising steps."),
]


class Embedding(BaseModel):
    """A textual inversion."""

    path: str = Field(min_length=1, max_length=2048, description="URL or path of the embedding.")
    tokens: list[str] = Field(default=["<s0>", "<s1>"], description="The words that it stands for.")


class Sdxl(Seeded, Prompted, Checked):
    """What all of them have in common. The format's name is another here, and so is the number of pictures."""

    num_images: int = Field(1, ge=1, le=8, description="How many pictures to produce.")
    embeddings: list[Embedding] = Field(default=[], description="Not supported here: leave it empty.")
    safety_checker_version: Literal["v1", "v2"] = Field("v1", description="Accepted; the checkpoint's own is used.")
    format: OutputFormat = Field("jpeg", description="File format of the pictures.")
    request_id: str = Field("", max_length=200, description="A tag of the caller's; it changes nothing.")

    @field_validator("embeddings")
    @classmethod
    def _no_embeddings(cls, value: list[Embedding]) -> list[Embedding]:
        if value:
            raise PydanticCustomError("not_supported", "Textual inversions are not supported by this server")
        return value

    def image_format(self) -> OutputFormat:
        return self.format


class SquareHd(Sized):
    """A square of a megapixel if nothing is said."""

    image_size: SizeField = Field("square_hd", description="Size of the pictures: a preset, or width and height.")


class Lightning(Sdxl, SquareHd):
    """fal-ai/fast-lightning-sdxl: distilled, without guidance."""

    num_inference_steps: FewSteps = "4"

    def steps(self) -> int:
        return int(self.num_inference_steps)

    def guidance(self, usual: float) -> float:
        return 0.0


class Playground(Sdxl, SquareHd, Guided):
    """fal-ai/playground-v25."""

    guidance_scale: WideGuidance = 3
    negative_prompt: PromptText = Field("", description="Text of what should not be in the picture.")
    num_inference_steps: int = Field(25, ge=1, le=50, description="Number of denoising steps.")

    def steps(self) -> int:
        return self.num_inference_steps

    def avoided(self) -> str:
        return self.negative_prompt


class Reworked(Sdxl, SquareHd):
    """Starts from a picture."""

    image_url: PictureUrl
    strength: PlaygroundStrength = 0.95
    preserve_aspect_ratio: bool = Field(False, description="Keep the picture's own proportions.")
    crop_output: bool = Field(False, description="Accepted; pictures come in the size that was drawn.")

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        width, height = super().pixels(max_pixels, pictures)
        if not self.preserve_aspect_ratio or not pictures:
            return width, height
        return shrink(*pictures[0], width * height)

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        return (ImageToImage(needs.picture(self.image_url, "image_url"), self.strength, rounds_down=True),)


class Masked(Sdxl, SquareHd):
    """Drawn anew where the mask is white."""

    image_url: PictureUrl
    mask_url: MaskUrl
    strength: MaskedStrength = 0.95

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        picture = needs.picture(self.image_url, "image_url")
        return (Inpaint(picture, needs.mask(self.mask_url, "mask_url"), self.strength, rounds_down=True),)


class LightningImageToImage(Reworked, Lightning):
    """fal-ai/fast-lightning-sdxl/image-to-image."""


class LightningInpainting(Masked, Lightning):
    """fal-ai/fast-lightning-sdxl/inpainting."""


class PlaygroundImageToImage(Reworked, Playground):
    """fal-ai/playground-v25/image-to-image."""

    num_inference_steps: int = Field(25, ge=1, le=65, description="Number of denoising steps, of which some are kept.")


class PlaygroundInpainting(Masked, Playground):
    """fal-ai/playground-v25/inpainting."""

    num_inference_steps: int = Field(25, ge=1, le=65, description="Number of denoising steps, of which some are kept.")
