"""The pictures of the fake engine: a gradient between two colours that prompt and seed decide. No torch."""

from __future__ import annotations

import hashlib


def draw(prompt: str, seed: int, width: int, height: int) -> bytes:
    """height x width x 3 bytes, row major, RGB: one colour at the top, another at the bottom, the same every time."""
    top, bottom = _colours(prompt, seed)
    last = max(1, height - 1)
    rows = (bytes(a + (b - a) * y // last for a, b in zip(top, bottom, strict=True)) * width for y in range(height))
    return b"".join(rows)


def black(width: int, height: int) -> bytes:
    """The same shape, as a flagged picture is shown."""
    return bytes(3 * width * height)


def _colours(prompt: str, seed: int) -> tuple[bytes, bytes]:
    digest = hashlib.sha256(f"{seed} {prompt}".encode()).digest()
    return digest[:3], digest[3:6]
