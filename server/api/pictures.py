"""The pictures of an input, or the model errors at the fields that name them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from server.api.errors import InputError, Problem, problem
from server.api.schemas.needs import PictureNeed
from server.files.decoding import Limits, PictureError, Pixels
from server.files.inputs import ANY_SIZE, Inputs

MAX_PIXELS = 1 << 28
"""Of all pictures of one input together: they travel to the worker in one frame."""


async def read_pictures(
    inputs: Inputs, needs: Sequence[PictureNeed], limits: Limits = ANY_SIZE, tenant: str = ""
) -> list[Pixels]:
    """The pixels behind the addresses, all read at once.

    Args: tenant: who asks, for files that are not for all. Raises: InputError with one entry a picture at fault."""
    share = MAX_PIXELS // max(1, len(needs))
    bounded = replace(limits, max_area=min(limits.max_area, share))
    read = await asyncio.gather(*(_read(inputs, need, bounded, tenant) for need in needs))
    if problems := [each for each in read if isinstance(each, dict)]:
        raise InputError(problems)
    return [each for each in read if isinstance(each, Pixels)]


async def _read(inputs: Inputs, need: PictureNeed, limits: Limits, tenant: str) -> Pixels | Problem:
    try:
        return await inputs.read(need.url, limits, need.reading, need.grow, tenant, need.seen_area)
    except PictureError as exc:
        return problem(need.loc, exc.message, exc.kind, exc.ctx, need.url)
