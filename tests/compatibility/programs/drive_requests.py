"""What ComfyUI-fal-API does: it submits by `fal_client` and fetches the picture by `requests`."""

from __future__ import annotations

from typing import Any

import fal_client
import requests
from telling import ENDPOINT, INPUT, perform


def fetched() -> Any:
    result = fal_client.submit(ENDPOINT, arguments=INPUT).get()
    answer = requests.get(result["images"][0]["url"], timeout=60)
    answer.raise_for_status()
    return {"magic": answer.content[:2].hex()}


def fetched_over_tls() -> Any:
    """By `requests`' own authorities."""
    return requests.get("https://fal.run/livez", timeout=60).json()


perform({"submit, get, requests.get": fetched, "requests over TLS": fetched_over_tls})
