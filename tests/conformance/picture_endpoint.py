"""An endpoint of the test server alone that takes pictures and tells what pixels it was given: `test/pictures`.

No endpoint of the product takes pictures yet; the way from an address to pixels is the product's own.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server import app
from server.areas import Arrival
from server.body import read_object
from server.inputs import Inputs
from server.outgoing import parse_networks
from server.picture_pool import PicturePool
from server.responses import json_response
from server.routes.run import RunArea
from server.schemas.pictures import PictureUrl, picture_urls
from server.validation import input_error

if TYPE_CHECKING:
    from server.node import Node

PICTURES = "test/pictures"


class Layer(BaseModel):
    mask: PictureUrl


class Pictures(BaseModel):
    """Addresses at every depth."""

    image_url: PictureUrl | None = None
    images: list[PictureUrl | list[PictureUrl]] = []
    layers: list[Layer] = []


class RunAreaWithPictures(RunArea):
    """The run area with one endpoint more."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._inputs = Inputs(node.objects, PicturePool(), parse_networks(node.settings.allow_private_cidrs))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrival: Arrival = scope["arrival"]
        if arrival.path != f"/{PICTURES}":
            await super().__call__(scope, receive, send)
            return
        body = await read_object(Request(scope, receive))
        try:
            parsed = Pictures.model_validate(body)
        except ValidationError as exc:
            raise input_error(exc) from exc
        await json_response({"input": body, "pictures": await self._seen(parsed)})(scope, receive, send)

    async def _seen(self, parsed: Pictures) -> list[dict[str, Any]]:
        seen = []
        for loc, url in picture_urls(parsed):
            pixels = await self._inputs.read(url, loc)
            digest = hashlib.sha256(pixels.data).hexdigest()
            seen.append({"loc": loc, "width": pixels.width, "height": pixels.height, "sha256": digest})
        return seen


def install() -> None:
    """Every app made from here on has the endpoint."""
    app.RunArea = RunAreaWithPictures  # type: ignore[attr-defined]
