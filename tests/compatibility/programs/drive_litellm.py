"""What a user of LiteLLM's fal provider does."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
from telling import ENDPOINT, INPUT, perform

MODEL = f"fal_ai/{ENDPOINT}"
ASKED: dict[str, Any] = {"model": MODEL, "prompt": INPUT["prompt"], "image_size": INPUT["image_size"]}


def pictures(answer: Any) -> Any:
    return {"pictures": [picture.url for picture in answer.data]}


perform(
    {
        "image_generation": lambda: pictures(litellm.image_generation(**ASKED)),
        "aimage_generation": lambda: pictures(asyncio.run(litellm.aimage_generation(**ASKED))),
    }
)
