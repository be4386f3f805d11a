"""The inputs of fal's FLUX.1 text-to-image endpoints: one class a shape, fields and limits as fal publishes them.

Unknown fields are ignored, as fal's own model library does. Fields that have no meaning on open weights are
accepted and change nothing: `enhance_prompt`, `raw`, `image_prompt_strength`. docs/api.md lists them.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.sizes import (
    KONTEXT_1MP,
    ULTRA_4MP,
    AspectRatio,
    SizeField,
    pixels_of,
    pixels_of_ratio,
    shrink,
)

MAX_PROMPT_CHARACTERS = 32_768
"""Far beyond the 512 tokens a model reads; a longer text only costs tokenising time."""

FIXED_STEPS = 28
FIXED_GUIDANCE = 3.5

TOLERANCE_THRESHOLDS = {"1": 0.25, "2": 0.5, "3": 0.65, "4": 0.8, "5": 0.9, "6": 0.97}
"""A picture is blacked out when its unsafe probability reaches this; fal's own thresholds are not public."""

DEFAULT_THRESHOLD = 0.5
"""For endpoints that only switch the checker on or off: the cut-off of fal's published toolkit."""

Steps = Annotated[int, Field(ge=1, le=50, description="Number of denoising steps.")]
Guidance = Annotated[float, Field(ge=1, le=20, description="How tightly generation follows the text.")]
Acceleration = Literal["none", "regular", "high"]
OutputFormat = Literal["jpeg", "png"]


def _no_boolean(value: Any) -> Any:
    """pydantic takes true for 1; as a seed it is a mistake."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


Seed = Annotated[int, BeforeValidator(_no_boolean)]


def _digit(value: Any) -> Any:
    """safety_tolerance is a digit in a string; clients also send the number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Tolerance = Annotated[
    Literal["1", "2", "3", "4", "5", "6"],
    BeforeValidator(_digit, json_schema_input_type=Literal["1", "2", "3", "4", "5", "6", 1, 2, 3, 4, 5, 6]),
    Field(description='Moderation strictness: "1" blocks most, "6" least.'),
]


class TextToImage(BaseModel):
    """What every text-to-image input has, and the questions that all of them answer.

    `steps`, `guidance`, `threshold` and `speed` have the values of endpoints that publish no field for them.
    """

    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS, description="Text describing the picture to generate.")
    seed: Seed | None = Field(None, description="The same seed and input repeat the picture; omit it for a random one.")
    sync_mode: bool = Field(False, description="Return pictures as data URIs in the answer and keep nothing.")
    num_images: int = Field(1, ge=1, le=4, description="How many pictures to produce.")
    output_format: OutputFormat = Field("jpeg", description="File format of the pictures.")

    @abstractmethod
    def pixels(self, max_pixels: int) -> tuple[int, int]:
        """(width, height) wanted; `max_pixels` binds only sizes that the endpoint itself chooses."""

    def steps(self) -> int:
        return FIXED_STEPS

    def guidance(self) -> float:
        return FIXED_GUIDANCE

    def threshold(self) -> float | None:
        """Unsafe probability from which a picture is blacked out; None switches the checker off."""
        return DEFAULT_THRESHOLD

    def speed(self) -> Acceleration:
        return "none"


class Sized(TextToImage):
    """Sized by a preset or by sides."""

    image_size: SizeField = Field("landscape_4_3", description="Size of the pictures: a preset, or width and height.")

    def pixels(self, max_pixels: int) -> tuple[int, int]:
        return pixels_of(self.image_size)


class Stepped(Sized):
    """Steps and guidance chosen by the caller."""

    num_inference_steps: Steps = 28
    guidance_scale: Guidance = 3.5

    def steps(self) -> int:
        return self.num_inference_steps

    def guidance(self) -> float:
        return self.guidance_scale


class Tolerant(TextToImage):
    """Safety by degree. `enable_safety_checker` is no longer published here, but old callers send it."""

    safety_tolerance: Tolerance = "2"
    enable_safety_checker: bool = Field(True, description="False leaves pictures unchecked.")
    enhance_prompt: bool = Field(False, description="Accepted; prompts are used as written.")

    def threshold(self) -> float | None:
        return TOLERANCE_THRESHOLDS[self.safety_tolerance] if self.enable_safety_checker else None


class Checked(TextToImage):
    """Safety on or off."""

    enable_safety_checker: bool = Field(True, description="False leaves pictures unchecked.")

    def threshold(self) -> float | None:
        return DEFAULT_THRESHOLD if self.enable_safety_checker else None


class FluxPro(Stepped, Tolerant):
    """fal-ai/flux-pro and /new."""


class FluxProPlus(Sized, Tolerant):
    """fal-ai/flux-pro/v1.1: steps and guidance are the server's."""


class FluxProUltra(Tolerant):
    """fal-ai/flux-pro/v1.1-ultra: about 4 megapixels by aspect ratio."""

    aspect_ratio: str = Field("16:9", description="width:height, from 21:9 to 9:21.")
    raw: bool = Field(False, description="Accepted; open weights have no such switch.")
    image_url: str | None = Field(None, description="Not supported yet: must be absent or null.")
    image_prompt_strength: float = Field(0.1, ge=0, le=1)

    @field_validator("image_url")
    @classmethod
    def _without_picture(cls, value: str | None) -> str | None:
        if value is not None:
            raise PydanticCustomError("feature_not_supported", "Remixing a picture is not supported by this server")
        return value

    @field_validator("aspect_ratio")
    @classmethod
    def _is_ratio(cls, value: str) -> str:
        match = re.fullmatch(r"([0-9]{1,5}):([0-9]{1,5})", value)
        width, height = (int(match[1]), int(match[2])) if match else (0, 0)
        if not width or not height or not 9 / 21 <= width / height <= 21 / 9:
            raise PydanticCustomError("aspect_ratio", "Input should be width:height, between 21:9 and 9:21")
        return value

    def pixels(self, max_pixels: int) -> tuple[int, int]:
        listed = ULTRA_4MP.get(self.aspect_ratio)
        if listed is None:
            width, height = self.aspect_ratio.split(":")
            listed = pixels_of_ratio(int(width), int(height))
        return shrink(*listed, max_pixels)


class KontextText(TextToImage):
    """fal-ai/flux-pro/kontext/text-to-image and /max: about 1 megapixel by aspect ratio."""

    guidance_scale: Guidance = 3.5
    safety_tolerance: Tolerance = "2"
    enhance_prompt: bool = Field(False, description="Accepted; prompts are used as written.")
    aspect_ratio: AspectRatio = "1:1"

    def pixels(self, max_pixels: int) -> tuple[int, int]:
        return shrink(*KONTEXT_1MP[self.aspect_ratio], max_pixels)

    def guidance(self) -> float:
        return self.guidance_scale

    def threshold(self) -> float | None:
        return TOLERANCE_THRESHOLDS[self.safety_tolerance]


class FluxDev(Stepped, Checked):
    """fal-ai/flux/dev."""

    acceleration: Acceleration = Field("none", description="Faster presets may alter the picture slightly.")

    def speed(self) -> Acceleration:
        return self.acceleration


class FluxSchnell(FluxDev):
    """fal-ai/flux/schnell: few steps."""

    num_inference_steps: Annotated[int, Field(ge=1, le=12, description="Number of denoising steps.")] = 4


class FluxKrea(FluxDev):
    """fal-ai/flux/krea and /srpo: a stronger default guidance."""

    guidance_scale: Guidance = 4.5


class LoraWeight(BaseModel):
    """An adapter, where it lies and how much of it."""

    path: str
    scale: float = Field(1, ge=0, le=4)


class WithLoras(Stepped, Checked):
    """An input that may name adapters; this server has none yet, so the list must be empty."""

    loras: list[LoraWeight] = Field(
        default=[], description="Not supported yet: must be absent or empty.", json_schema_extra={"maxItems": 0}
    )

    @field_validator("loras")
    @classmethod
    def _without_adapters(cls, value: list[LoraWeight]) -> list[LoraWeight]:
        if value:
            raise PydanticCustomError("feature_not_supported", "LoRA adapters are not supported by this server")
        return value


class FluxLora(WithLoras):
    """fal-ai/flux-lora and fal-ai/flux-krea-lora without adapters."""

    guidance_scale: Annotated[float, Field(ge=0, le=35, description="How tightly generation follows the text.")] = 3.5
    acceleration: Literal["none", "regular"] = "none"

    def speed(self) -> Acceleration:
        return self.acceleration


class KontextLora(WithLoras):
    """fal-ai/flux-kontext-lora/text-to-image without adapters."""

    num_inference_steps: Annotated[int, Field(ge=10, le=50, description="Number of denoising steps.")] = 30
    guidance_scale: Annotated[float, Field(ge=0, le=20, description="How tightly generation follows the text.")] = 2.5
    output_format: OutputFormat = "png"
    acceleration: Acceleration = "none"

    def speed(self) -> Acceleration:
        return self.acceleration
