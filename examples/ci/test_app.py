"""Runs against whatever server the environment names; the job in github-actions.yaml starts one with flux-shapes."""

from __future__ import annotations

import io

import httpx
import pytest
from app import card
from PIL import Image


def test_the_card_has_the_colour_that_was_asked_for() -> None:
    answer = httpx.get(card("red"), timeout=60)
    picture = Image.open(io.BytesIO(answer.content)).convert("RGB").resize((32, 32))
    pixels = [picture.getpixel((x, y)) for x in range(32) for y in range(32)]
    assert sum(red > 150 and green < 100 and blue < 100 for red, green, blue in pixels) > 20
    assert sum(min(pixel) > 200 for pixel in pixels) > 500


def test_a_refusal_is_told() -> None:
    with pytest.raises(ValueError, match="no card"):
        card("red", size="enormous")
