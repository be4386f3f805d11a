"""The program under test: a greeting card, drawn by fal."""

from __future__ import annotations

import fal_client


def card(colour: str, size: str = "square") -> str:
    """The address of a picture. Raises: ValueError if it could not be drawn."""
    asked = {"prompt": f"a {colour} circle on a white background", "image_size": size, "seed": 7}
    try:
        result = fal_client.subscribe("fal-ai/flux/dev", asked)
    except fal_client.FalClientHTTPError as exc:
        raise ValueError(f"no card: {exc.message}") from exc
    return str(result["images"][0]["url"])
