"""Fields that take a picture: a URL or a data URI, read into pixels later by `server.files.inputs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

Loc = tuple[str | int, ...]
"""Place of a value below the body of an input."""


class PictureUrl(str):
    """An address of a picture, not yet looked at. As a type of its own it is found at any depth of an input."""

    __slots__ = ()
    meaning: ClassVar[str] = "URL or data URI of a JPEG, PNG or WebP picture."

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema(min_length=1))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"description": cls.meaning}


class MaskUrl(PictureUrl):
    """The same, of a mask."""

    __slots__ = ()
    meaning: ClassVar[str] = "URL or data URI of a mask: white is drawn anew, black is kept. Any size; grey blends."


def picture_urls(value: object, loc: Loc = ()) -> Iterator[tuple[Loc, PictureUrl]]:
    """Every picture address in a validated input, with its place below the body."""
    if isinstance(value, PictureUrl):
        yield loc, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from picture_urls(getattr(value, name), (*loc, name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from picture_urls(item, (*loc, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from picture_urls(item, (*loc, index))
