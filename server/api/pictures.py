"""A picture of an input, or the model error at the field that names it."""

from __future__ import annotations

from collections.abc import Sequence

from server.api.errors import InputError, problem
from server.files.decoding import Limits, PictureError, Pixels
from server.files.inputs import ANY_SIZE, Inputs


async def read_picture(inputs: Inputs, url: str, loc: Sequence[str | int], limits: Limits = ANY_SIZE) -> Pixels:
    """The pixels behind an address; `loc` is the place of the address below the body. Raises: InputError."""
    try:
        return await inputs.read(url, limits)
    except PictureError as exc:
        raise InputError([problem(loc, exc.message, exc.kind, exc.ctx, url)]) from exc
