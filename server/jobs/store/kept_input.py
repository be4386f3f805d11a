"""How large an input is, and what of it stays in the store when its job has ended: nobody needs its pictures again."""

from __future__ import annotations

from typing import Any

MAX_CHARACTERS = 65_536
"""Of one input, names and values together. Ordinary ones have a few hundred."""
LONG = 8192
"""Characters of a text that goes first, as a data URI's; a prompt is not as long."""
SHOWN = 64
"""And how much of its beginning tells what it was."""


def kept(value: dict[str, Any]) -> dict[str, Any]:
    """The input itself if it is small, else with long texts cut; nothing of one that is still large then."""
    if size_of_input(value) <= MAX_CHARACTERS:
        return value
    cut: dict[str, Any] = _cut(value)
    return cut if size_of_input(cut) <= MAX_CHARACTERS else {}


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_cut(each) for each in value]
    if isinstance(value, str) and len(value) > LONG:
        return f"{value[:SHOWN]}... ({len(value)} characters, not kept)"
    return value


def size_of_input(value: Any) -> int:
    """Characters of names and values together: about the bytes of its row."""
    if isinstance(value, dict):
        return sum(len(name) + size_of_input(each) for name, each in value.items())
    if isinstance(value, list):
        return sum(size_of_input(each) for each in value)
    return len(value) if isinstance(value, str) else 8
