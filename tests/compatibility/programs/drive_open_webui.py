"""The request that Open WebUI sends for its engine "openai" (routers/images.py), from its own settings."""

from __future__ import annotations

import base64
import os
from typing import Any

import httpx
from telling import INPUT, perform


def drawn() -> Any:
    body = {
        "model": os.environ["IMAGE_GENERATION_MODEL"],
        "prompt": INPUT["prompt"],
        "n": 1,
        "size": "64x64",
        "response_format": "b64_json",
    }
    answer = httpx.post(
        f"{os.environ['IMAGES_OPENAI_API_BASE_URL']}/images/generations",
        headers={"Authorization": f"Bearer {os.environ['IMAGES_OPENAI_API_KEY']}"},
        json=body,
        timeout=60,
    )
    return {"magic": base64.b64decode(answer.raise_for_status().json()["data"][0]["b64_json"])[:2].hex()}


perform({"images/generations": drawn})
