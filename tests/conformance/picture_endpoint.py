"""An endpoint of the test server alone that takes pictures and tells what pixels it was given: `test/pictures`.

No endpoint of the product takes pictures yet; the way from an address to pixels is the product's own.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from server import app
from server.api.body import read_object
from server.api.pictures import read_pictures
from server.api.schemas.needs import PictureNeed
from server.api.schemas.pictures import PictureUrl, picture_urls
from server.api.served import Served
from server.api.validation import input_error
from server.files.inputs import Inputs
from server.files.picture_pool import PicturePool
from server.gateway.areas import Target
from server.gateway.gateway import Gateway
from server.http.outgoing import parse_networks
from server.http.responses import json_response
from server.jobs.service import JobService
from server.routes.fal.run import RunArea

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

    def __init__(self, inputs: Inputs, jobs: JobService, served: Served) -> None:
        super().__init__(jobs, served)
        self._inputs = inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target: Target = scope["target"]
        if target.path != f"/{PICTURES}":
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
            (pixels,) = await read_pictures(self._inputs, [PictureNeed(url, loc)])
            digest = hashlib.sha256(pixels.data).hexdigest()
            seen.append({"loc": loc, "width": pixels.width, "height": pixels.height, "sha256": digest})
        return seen


def install() -> None:
    """Every app made from here on has the endpoint."""
    create_app = app.create_app

    def create_app_with_pictures(node: Node, plain_port: int) -> Gateway:
        inputs = Inputs(node.objects, PicturePool(), parse_networks(node.settings.allow_private_cidrs))
        app.RunArea = partial(RunAreaWithPictures, inputs)  # type: ignore[attr-defined]
        return create_app(node, plain_port)

    app.create_app = create_app_with_pictures
