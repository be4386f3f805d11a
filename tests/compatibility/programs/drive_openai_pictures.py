"""What a user of the `openai` package does to have pictures edited, repainted and varied."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import openai
from telling import INPUT, perform

client = openai.OpenAI()
SEED = {"seed": INPUT["seed"]}


def file(name: str) -> BytesIO:
    """A picture as people hand one over: an open file with a name."""
    opened = BytesIO(base64.b64decode(INPUT[name]))
    opened.name = f"{name}.png"
    return opened


def told(answer: Any) -> Any:
    """The pictures, by address or inline."""
    return {"pictures": [picture.url or picture.b64_json for picture in answer.data or []]}


def edit() -> Any:
    return told(client.images.edit(image=file("picture"), prompt="make the circle green", extra_body=SEED))


def edit_inline() -> Any:
    answer = client.images.edit(
        image=[file("picture")],
        prompt="make the circle green",
        model="gpt-image-1",
        output_format="jpeg",
        extra_body=SEED,
    )
    return told(answer)


def edit_in_a_mask() -> Any:
    answer = client.images.edit(
        image=file("picture"),
        mask=file("mask"),
        prompt="a yellow circle",
        model="fal-ai/flux-pro/v1/fill",
        extra_body=SEED,
    )
    return told(answer)


def vary() -> Any:
    return told(client.images.create_variation(image=file("picture"), n=2, size="256x256", extra_body=SEED))


def no_picture() -> Any:
    try:
        client.images.edit(image=("a.png", b"<svg/>"), prompt="make the circle green")
    except openai.BadRequestError as exc:
        return {"status": exc.status_code, "param": exc.param, "says": exc.message}
    raise AssertionError("nothing was raised")


perform(
    {
        "images.edit": edit,
        "images.edit inline": edit_inline,
        "images.edit in a mask": edit_in_a_mask,
        "images.create_variation": vary,
        "no picture": no_picture,
    }
)
