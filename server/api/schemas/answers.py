"""What the server answers, in fal's words; used for the OpenAPI document and held to the wire by tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class Image(BaseModel):
    """One picture of a result."""

    url: str = Field(description="An address, or a data URI in sync mode.")
    content_type: str = "image/jpeg"
    width: int
    height: int
    file_name: str | None = None
    file_size: int | None = None


class Output(BaseModel):
    """The result of a text-to-image request."""

    images: list[Image]
    timings: dict[str, float]
    seed: int
    has_nsfw_concepts: list[bool]
    prompt: str


class QueueStatus(BaseModel):
    """Where a request stands. A failed or cancelled one is COMPLETED, with `error`."""

    status: Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    request_id: str
    response_url: str
    status_url: str
    cancel_url: str
    queue_position: int | None = None
    gateway_request_id: str | None = None
    logs: list[dict[str, Any]] | None = None
    metrics: dict[str, float | None] | None = None
    error: str | None = None
    error_type: str | None = None


class Cancellation(BaseModel):
    """The answer to a cancel."""

    status: Literal["CANCELLATION_REQUESTED"]


class Problem(BaseModel):
    """One fault of an input."""

    loc: list[str | int]
    msg: str
    type: str
    url: str | None = None
    ctx: dict[str, Any] | None = None
    input: Any = None


class ErrorAnswer(BaseModel):
    """Every error: a sentence, or one entry a fault of the input."""

    detail: str | list[Problem]
    error_type: str | None = None
    status: str | None = None


ALL: tuple[type[BaseModel], ...] = (Output, QueueStatus, Cancellation, ErrorAnswer)
