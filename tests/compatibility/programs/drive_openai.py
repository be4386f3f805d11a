"""What a user of the `openai` package does to get pictures."""

from __future__ import annotations

import base64
from typing import Any

import openai
from telling import ENDPOINT, INPUT, perform

client = openai.OpenAI()
ASKED: dict[str, Any] = {"prompt": INPUT["prompt"], "size": "64x64", "extra_body": {"seed": INPUT["seed"]}}


def models() -> Any:
    return {"listed": ENDPOINT in [model.id for model in client.models.list()]}


def by_url() -> Any:
    answer = client.images.generate(model=ENDPOINT, n=2, **ASKED)
    return {"pictures": [picture.url for picture in answer.data or []]}


def inline() -> Any:
    answer = client.images.generate(model=ENDPOINT, response_format="b64_json", **ASKED)
    (picture,) = answer.data or []
    return {"magic": base64.b64decode(picture.b64_json or "")[:2].hex()}


def wrong_size() -> Any:
    try:
        client.images.generate(model=ENDPOINT, prompt="a fox", size="huge")  # type: ignore[call-overload]
    except openai.BadRequestError as exc:
        return {"status": exc.status_code, "says": exc.body["message"] if isinstance(exc.body, dict) else None}
    raise AssertionError("nothing was raised")


perform(
    {
        "models.list": models,
        "images.generate": by_url,
        "images.generate inline": inline,
        "a wrong field": wrong_size,
    }
)
