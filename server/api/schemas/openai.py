"""The image request of OpenAI's API, as far as FLUX can answer it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator
from pydantic_core import PydanticCustomError

from server.api.schemas.base import MAX_PROMPT_CHARACTERS, NotBoolean, Seed

Candidates = tuple[str, ...]
"""Endpoint ids; the first whose checkpoint is served is meant."""

DEFAULTS: Candidates = ("fal-ai/flux/dev", "fal-ai/flux-2/klein/4b", "blackforestlabs/flux-3/klein/text-to-image")
_FLUX_3_EDIT = "blackforestlabs/flux-3/klein/edit"
_EDITS: Candidates = ("fal-ai/flux-kontext/dev", "fal-ai/flux-2/klein/4b/edit", _FLUX_3_EDIT)
_EDITS_OF_SEVERAL: Candidates = ("fal-ai/flux-pro/kontext/multi", "fal-ai/flux-2/klein/4b/edit", _FLUX_3_EDIT)
_OPENAIS_MODELS = ("dall-e-", "gpt-image-", "chatgpt-image-")
_NEW_QUALITIES = frozenset({"auto", "low", "medium", "high"})
_NEW_FIELDS = ("output_format", "output_compression", "background", "moderation", "partial_images")
"""What only callers of the gpt-image models send; those read `b64_json` without asking for it."""


class ImageRequest(BaseModel):
    """`POST /v1/images/generations`. `style`, `user` and what else OpenAI knows is ignored."""

    prompt: str = Field(max_length=MAX_PROMPT_CHARACTERS)
    model: str = Field("", description="An endpoint id from /v1/models; empty, or OpenAI's own names, choose one.")
    n: Annotated[int, Field(ge=1, le=4), NotBoolean] = 1
    size: str = Field(
        "auto",
        description="auto, or WIDTHxHEIGHT in pixels.",
        json_schema_extra={"pattern": "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"},
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="url, unless another field shows a caller of the gpt-image models, who reads b64_json."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(None, description="png if not given.")
    output_compression: Annotated[int, Field(ge=0, le=100), NotBoolean] | None = Field(
        None, description="Quality of JPEG and WebP; 100, or nothing, is this server's own. PNG loses nothing."
    )
    background: Literal["auto", "opaque"] | None = Field(
        None, description="Pictures are opaque: transparent is refused."
    )
    moderation: str | None = Field(None, description="Accepted; the server's own safety checker decides.")
    quality: str | None = Field(None, description="Accepted; the model's own number of steps is drawn.")
    stream: bool = Field(False, description="Events instead of one answer, the last with the picture.")
    partial_images: Annotated[int, Field(ge=0, le=3), NotBoolean] | None = Field(
        None, description="Small pictures on the way, where it streams."
    )
    seed: Seed | None = Field(None, description="Not in OpenAI's API; repeats a picture.")

    @field_validator("model", "size", "n", "stream", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("size")
    @classmethod
    def _is_size(cls, value: str) -> str:
        if value != "auto" and not re.fullmatch(r"[0-9]{1,5}x[0-9]{1,5}", value):
            raise PydanticCustomError("size", "Input should be auto or WIDTHxHEIGHT, such as 1024x1024")
        return value

    @field_validator("output_compression")
    @classmethod
    def _can_be_compressed(cls, value: int | None, info: Any) -> int | None:
        """As at OpenAI, which refuses it for PNG, too."""
        if value not in (None, 100) and info.data.get("output_format") in (None, "png"):
            raise PydanticCustomError(
                "output_compression", "PNG loses nothing: ask for output_format jpeg or webp, or leave this out"
            )
        return value

    @field_validator("background", mode="before")
    @classmethod
    def _can_be_drawn(cls, value: Any) -> Any:
        if value == "transparent":
            raise PydanticCustomError("background", "This server draws opaque pictures only: leave background out")
        return value

    @property
    def file_format(self) -> Literal["png", "jpeg", "webp"]:
        """PNG by default, as OpenAI has it."""
        return self.output_format or "png"

    @property
    def delivery(self) -> dict[str, Any]:
        """How the files are made. OpenAI's quality goes down to 0, where encoders begin at 1."""
        is_own = self.output_compression in (None, 100) or self.file_format == "png"
        quality = {} if is_own else {"quality": max(1, self.output_compression or 0)}
        return {"format": self.file_format, **quality}

    @property
    def endpoints(self) -> Candidates:
        """What `model` means."""
        return (self.model,) if self.names_one else DEFAULTS

    @property
    def names_one(self) -> bool:
        """Whether `model` is an endpoint's id."""
        return bool(self.model) and not self.model.startswith(_OPENAIS_MODELS)

    @property
    def is_inline(self) -> bool:
        """Whether pictures come as `b64_json`."""
        if self.stream or self.response_format is not None:
            return self.stream or self.response_format == "b64_json"
        is_new = self.model.startswith(_OPENAIS_MODELS[1:]) or self.quality in _NEW_QUALITIES
        return is_new or any(name in self.model_fields_set and getattr(self, name) is not None for name in _NEW_FIELDS)

    def as_fal(self) -> dict[str, Any]:
        """As an input of fal's endpoints; sized both ways, since each takes one and ignores the other."""
        body: dict[str, Any] = {
            "prompt": self.prompt,
            "num_images": self.n,
            "seed": self.seed,
            "sync_mode": self.is_inline,
            # fal's inputs know no WebP; see `server.routes.openai`.
            "output_format": "jpeg" if self.file_format == "jpeg" else "png",
        }
        if self.size != "auto":
            width, height = (int(side) for side in self.size.split("x"))
            body |= {"image_size": {"width": width, "height": height}, "aspect_ratio": _ratio(width, height)}
        return body


class PictureRequest(ImageRequest):
    """`POST /v1/images/edits` and `/v1/images/variations`, the fields of the form beside its files.

    Without a model, an endpoint is chosen by what is sent: an instruction for one picture or several, a mask to draw
    in, or nothing but a picture to vary.
    """

    prompt: str = Field("", max_length=MAX_PROMPT_CHARACTERS)

    def endpoints_for(self, pictures: int, has_mask: bool, is_variation: bool) -> Candidates:
        """What is meant."""
        if self.names_one:
            return (self.model,)
        if is_variation:
            return ("fal-ai/flux/dev/redux",)
        if has_mask:
            return ("fal-ai/flux-lora/inpainting",)
        return _EDITS if pictures == 1 else _EDITS_OF_SEVERAL

    def with_pictures(self, urls: list[str], mask: str | None) -> dict[str, Any]:
        """As an input of fal's endpoints, which call a picture by one of three names and ignore the others."""
        body = self.as_fal() | {"image_url": urls[0], "control_image_url": urls[0], "image_urls": urls}
        return body if mask is None else body | {"mask_url": mask}


def _ratio(width: int, height: int) -> str:
    shared = math.gcd(width, height) or 1
    return f"{width // shared}:{height // shared}"
