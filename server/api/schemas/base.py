"""What the inputs of fal's FLUX endpoints are made of: one small class a group of fields, and the questions all answer.

Unknown fields are ignored, as fal's own model library does. Fields that have no meaning on open weights are
accepted and change nothing: `raw`. docs/api.md lists them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pipelines.protocol.conditions import Condition
from server.api.schemas.needs import AdapterNeed, Needs
from server.api.schemas.sizes import Size, SizeField, pixels_of, shrink

MAX_PROMPT_CHARACTERS = 32_768
"""Far beyond the 512 tokens a model reads; a longer text only costs tokenising time."""

MAX_ADAPTERS = 16
"""Of one request: each costs every step that it shares a little."""

FIXED_STEPS = 28

TOLERANCE_THRESHOLDS = {"1": 0.25, "2": 0.5, "3": 0.65, "4": 0.8, "5": 0.9, "6": 0.97}
"""A picture is blacked out when its unsafe probability reaches this; fal's own thresholds are not public."""

DEFAULT_THRESHOLD = 0.5
"""For endpoints that only switch the checker on or off: the cut-off of fal's published toolkit."""

Steps = Annotated[int, Field(ge=1, le=50, description="Number of denoising steps.")]
KeptSteps = Annotated[
    int, Field(ge=10, le=50, description="Number of denoising steps, of which `strength` keeps some.")
]
FewSteps = Annotated[int, Field(ge=1, le=12, description="Number of denoising steps.")]
Guidance = Annotated[float, Field(ge=1, le=20, description="How tightly generation follows the text.")]
WideGuidance = Annotated[float, Field(ge=0, le=20, description="How tightly generation follows the text.")]
WidestGuidance = Annotated[float, Field(ge=0, le=35, description="How tightly generation follows the text.")]
Strength = Annotated[
    float, Field(ge=0.01, le=1, description="How much is drawn anew: 1 ignores the picture, values near 0 keep it.")
]
PromptText = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Acceleration = Literal["none", "regular", "high"]
"""fal's levels."""
OwnAcceleration = Literal["none", "regular", "high", "max"]
"""And one more of ours."""
OutputFormat = Literal["jpeg", "png"]
AnyOutputFormat = Literal["jpeg", "png", "webp"]


def _no_boolean(value: Any) -> Any:
    """pydantic takes true for 1; as a seed or a count it is a mistake."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


NotBoolean = BeforeValidator(_no_boolean)
"""Stands behind bounds: those in front of it are in the published schema, too."""
Seed = Annotated[int, NotBoolean, Field(json_schema_extra={"minimum": -(2**63), "maximum": 2**64 - 1})]
"""Published with the bounds of JSON's integers as they are read here; any other, as text, is counted modulo 2^64."""


def as_digit(value: Any) -> Any:
    """Some choices are digits in strings; clients also send the number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Tolerance = Annotated[
    Literal["1", "2", "3", "4", "5", "6"],
    BeforeValidator(as_digit, json_schema_input_type=Literal["1", "2", "3", "4", "5", "6", 1, 2, 3, 4, 5, 6]),
    Field(description='Moderation strictness: "1" blocks most, "6" least.'),
]


class Input(BaseModel):
    """What every input has, and the questions that all of them answer.

    The answers here are those of endpoints that publish no field for the question.
    """

    sync_mode: bool = Field(False, description="Return pictures as data URIs in the answer and keep nothing.")

    @abstractmethod
    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        """(width, height) wanted.

        Args:
            max_pixels: binds only sizes that the endpoint itself chooses.
            pictures: sizes of the pictures read, in the order in which `conditions` asks for them. Until they are
                read there are none, and a size that follows one is a guess.
        """

    def conditions(self, needs: Needs) -> tuple[Condition, ...]:
        """What the request brings to its steps; every picture and checkpoint for that is asked of `needs`."""
        return ()

    def adapters(self) -> list[AdapterNeed]:
        """The LoRAs to apply together."""
        return []

    def text(self) -> str:
        """The prompt."""
        return ""

    def wants_expansion(self) -> bool:
        """Whether the prompt is to be written out before it is drawn."""
        return False

    def avoided(self) -> str:
        """What to lead away from, where the model can."""
        return ""

    def wanted_seed(self) -> int | None:
        return None

    def count(self) -> int:
        """Pictures wanted."""
        return 1

    def image_format(self) -> AnyOutputFormat:
        return "jpeg"

    def steps(self) -> int:
        return FIXED_STEPS

    def guidance(self, usual: float) -> float:
        """Guidance wanted; `usual` is the checkpoint's own."""
        return usual

    def threshold(self) -> float | None:
        """Unsafe probability from which a picture is blacked out; None switches the checker off."""
        return DEFAULT_THRESHOLD

    def speed(self) -> OwnAcceleration:
        return "none"


class Seeded(Input):
    """A seed, and how many pictures."""

    seed: Seed | None = Field(None, description="The same seed and input repeat the picture; omit it for a random one.")
    num_images: int = Field(1, ge=1, le=4, description="How many pictures to produce.")

    def wanted_seed(self) -> int | None:
        return self.seed

    def count(self) -> int:
        return self.num_images


class Repeatable(Seeded):
    """And a file format."""

    output_format: OutputFormat = Field("jpeg", description="File format of the pictures.")

    def image_format(self) -> OutputFormat:
        return self.output_format


class Expandable(Input):
    """Its text may be written out first. fal's endpoints have three names for the switch."""

    expand_prompt: bool = Field(
        False,
        validation_alias=AliasChoices("expand_prompt", "enable_prompt_expansion"),
        description="Let a language model write the prompt out first, where the server has one.",
    )

    def wants_expansion(self) -> bool:
        return self.expand_prompt or super().wants_expansion()


class Prompted(Expandable):
    """Told by a text."""

    prompt: PromptText = Field(description="Text describing the picture to generate.")

    def text(self) -> str:
        return self.prompt


class Steered(Expandable):
    """Perhaps told by a text."""

    prompt: PromptText = Field("", description="Text that steers the picture; may be empty.")

    def text(self) -> str:
        return self.prompt


class Sized(Input):
    """Sized by a preset or by sides."""

    image_size: SizeField = Field("landscape_4_3", description="Size of the pictures: a preset, or width and height.")

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        return pixels_of(self.image_size)


class LikePicture(Input):
    """As large as the first picture, or as near as the model draws."""

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        return shrink(*(pictures[0] if pictures else (1024, 1024)), max_pixels)


class SizedOrLikePicture(LikePicture):
    """Sized if the caller says so, else as large as the first picture."""

    image_size: SizeField | None = Field(
        None, description="Size of the pictures: a preset, or width and height. Left out: as the picture."
    )

    def pixels(self, max_pixels: int, pictures: Sequence[Size] = ()) -> Size:
        if self.image_size is None:
            return super().pixels(max_pixels, pictures)
        return pixels_of(self.image_size)


class Stepped(Input):
    """Steps chosen by the caller."""

    num_inference_steps: Steps = 28

    def steps(self) -> int:
        return self.num_inference_steps


class Guided(Input):
    """Guidance chosen by the caller."""

    guidance_scale: Guidance = 3.5

    def guidance(self, usual: float) -> float:
        return self.guidance_scale


class GuidedAsUsual(Guided):
    """Guidance chosen by the caller, else by the checkpoint: those that see more than text differ much in it."""

    def guidance(self, usual: float) -> float:
        return self.guidance_scale if "guidance_scale" in self.model_fields_set else usual


class Enhanced(Input):
    """The switch of prompt expansion by the name that [pro]'s endpoints have for it."""

    enhance_prompt: bool = Field(False, description="The same as expand_prompt.")

    def wants_expansion(self) -> bool:
        return self.enhance_prompt or super().wants_expansion()


class Tolerant(Enhanced):
    """Safety by degree. `enable_safety_checker` is no longer published here, but old callers send it."""

    safety_tolerance: Tolerance = "2"
    enable_safety_checker: bool = Field(True, description="False leaves pictures unchecked.")

    def threshold(self) -> float | None:
        return TOLERANCE_THRESHOLDS[self.safety_tolerance] if self.enable_safety_checker else None


class Checked(Input):
    """Safety on or off."""

    enable_safety_checker: bool = Field(True, description="False leaves pictures unchecked.")

    def threshold(self) -> float | None:
        return DEFAULT_THRESHOLD if self.enable_safety_checker else None


class Accelerated(Input):
    """Speed against exactness."""

    acceleration: OwnAcceleration = Field(
        "none",
        description="Faster presets may alter the picture slightly; max, which only this server has, is approximate: "
        "its first steps are drawn at half the size.",
    )

    def speed(self) -> OwnAcceleration:
        return self.acceleration


class LoraWeight(BaseModel):
    """An adapter, where it lies and how much of it."""

    path: str = Field(min_length=1, max_length=2048, description="URL or name of a .safetensors file.")
    scale: float = Field(1, ge=0, le=4, description="How much of it.")


class Adapted(Input):
    """Drawn with LoRAs."""

    loras: list[LoraWeight] = Field(default=[], max_length=MAX_ADAPTERS, description="LoRA adapters to apply together.")

    def adapters(self) -> list[AdapterNeed]:
        return [AdapterNeed(lora.path, lora.scale, ("loras", index, "path")) for index, lora in enumerate(self.loras)]


class SlightlyAccelerated(Input):
    """The same with one level less."""

    acceleration: Literal["none", "regular"] = Field("none", description="regular may alter the picture slightly.")

    def speed(self) -> Acceleration:
        return self.acceleration


class LoraInput(Repeatable, Prompted, Stepped, Guided, Checked, Adapted):
    """What fal's FLUX.1 LoRA endpoints have in common."""

    guidance_scale: WidestGuidance = 3.5
