"""OpenAI's image edits and variations: a form with files becomes an input of one of fal's picture endpoints."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator
from io import BytesIO
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from pydantic import ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from server.api.body import MAX_BODY_BYTES, read_bytes
from server.api.errors import InputError, problem, to_wire
from server.api.picture_endpoints import taking_pictures, taking_several
from server.api.schemas.openai import PictureRequest
from server.api.served import Served
from server.api.validation import input_error
from server.files.decoding import PictureError, Pixels
from server.files.inputs import Inputs
from server.http.errors import WireError
from server.jobs.service import JobService
from server.jobs.store.errors import StoreError
from server.routes.openai import RESPONSES, draw, error_answer, named, wish

MAX_FIELDS = 100
_EXAMPLES = {
    "edit": "fal-ai/flux-kontext/dev",
    "inpainting": "fal-ai/flux-lora/inpainting",
    "redux": "fal-ai/flux/dev/redux",
}


def openai_pictures_router(jobs: JobService, served: Served, inputs: Inputs) -> APIRouter:
    """Both routes."""
    router = APIRouter()

    @router.post("/v1/images/edits", responses=RESPONSES, openapi_extra=_form("image", "mask"))
    async def edit(request: Request) -> Response:
        """Edit pictures as an instruction says, or draw where a mask is transparent."""
        return await _answer(jobs, served, inputs, request, is_variation=False)

    @router.post("/v1/images/variations", responses=RESPONSES, openapi_extra=_form("image"))
    async def vary(request: Request) -> Response:
        """Draw more like a picture."""
        return await _answer(jobs, served, inputs, request, is_variation=True)

    return router


async def _answer(jobs: JobService, served: Served, inputs: Inputs, request: Request, is_variation: bool) -> Response:
    try:
        fields, files = await _read_form(request)
        asked = _asked(fields)
        urls = [_data_uri(data) for data in files.get("image", [])]
        if not urls:
            raise InputError([problem(["image"], "Field required", "missing")])
        mask = await _as_fal_mask(inputs, files["mask"][0]) if "mask" in files else None
        models = asked.endpoints_for(len(urls), mask is not None, is_variation)
        if asked.names_one:
            models = (_taking(models[0], len(urls), mask is not None, is_variation),)
        edit = wish(served, request, asked, models, asked.with_pictures(urls, mask), kind="image_edit")
        return await draw(jobs, request, edit)
    except (WireError, StoreError) as exc:
        return error_answer(to_wire(exc))


def _taking(model: str, pictures: int, has_mask: bool, is_variation: bool) -> str:
    """The endpoint that a call with pictures means by a model's name. Raises: WireError 404, InputError."""
    sibling = "redux" if is_variation else "inpainting" if has_mask else "edit"
    row = taking_pictures(named(model), sibling, _EXAMPLES[sibling])
    if pictures > 1:
        row = taking_several(row, pictures)
    if has_mask and "mask_url" not in row.schema.model_fields:
        msg = f"{row.id} takes no mask: {_EXAMPLES['inpainting']} and fal-ai/flux-pro/v1/fill do"
        raise InputError([problem(["mask"], msg, "no_mask_taken")])
    return row.id


async def _read_form(request: Request) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """The form's fields and files, bounded as every body is. Raises: PlainError 413, InputError."""
    data = await read_bytes(request)

    async def whole() -> AsyncGenerator[bytes, None]:
        yield data

    parser = MultiPartParser(
        request.headers, whole(), max_files=MAX_FIELDS, max_fields=MAX_FIELDS, max_part_size=MAX_BODY_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as exc:
        raise InputError([problem([], "The body is not a form of type multipart/form-data", "form_invalid")]) from exc
    fields: dict[str, str] = {}
    files: dict[str, list[bytes]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields[name] = value
        else:  # clients that send several write `image[]`
            files.setdefault(name.removesuffix("[]"), []).append(await value.read())
    await form.close()
    return fields, files


def _asked(fields: dict[str, str]) -> PictureRequest:
    try:
        return PictureRequest.model_validate(fields)
    except ValidationError as exc:
        raise input_error(exc) from exc


async def _as_fal_mask(inputs: Inputs, data: bytes) -> str:
    """OpenAI draws where its mask is transparent; the same with white there, as fal has it. Raises: InputError."""
    try:
        mask = await inputs.read(_data_uri(data), reading="holes")
    except PictureError as exc:
        raise InputError([problem(["mask"], exc.message, exc.kind, exc.ctx)]) from exc
    return _data_uri(await asyncio.to_thread(_png, mask))


def _png(mask: Pixels) -> bytes:
    target = BytesIO()
    Image.frombytes("L", (mask.width, mask.height), mask.data).save(target, "PNG", compress_level=1)
    return target.getvalue()


def _data_uri(data: bytes) -> str:
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def _form(*files: str) -> dict[str, Any]:
    schema = PictureRequest.model_json_schema()
    binary = {"type": "string", "format": "binary"}
    schema["properties"] |= dict.fromkeys(files, binary)
    schema["required"] = ["image"]
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}, "required": True}}
