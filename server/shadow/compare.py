"""What of an answer is no longer as it was: its shape, its pictures, its time. Pure functions."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from server.shadow.asking import End
from server.shadow.recording import Entry

HASH_SIDE = 8
COLOUR_SIDE = 16


@dataclass(frozen=True)
class PicturePair:
    """A recorded picture and its counterpart.

    Args:
        sizes: (width, height) of both; None for one that is missing or cannot be read.
        bits: of 64 that differ between their perceptual hashes; about 0 to 5 for the same picture stored anew, 32 for
            two that have nothing in common.
        colour: mean distance of their colours, in levels of 255.
    """

    sizes: tuple[tuple[int, int] | None, tuple[int, int] | None]
    bits: int | None
    colour: float | None


@dataclass(frozen=True)
class Comparison:
    """One request, there and here.

    Args:
        lost: what the answer had and lacks, or has in another type: what may break a program.
        gained: what it has besides.
    """

    entry: Entry
    end: End
    seconds: float
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    pictures: tuple[PicturePair, ...]

    def breaks(self, max_bits: int | None = None) -> bool:
        """Whether a program could notice. Args: max_bits: more between two pictures count as well."""
        return bool(self.lost) or (max_bits is not None and any(_is_far(pair, max_bits) for pair in self.pictures))


def _is_far(pair: PicturePair, max_bits: int) -> bool:
    return pair.bits is None or pair.bits > max_bits


def differences(entry: Entry, end: End) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(lost, gained) in words a person reads."""
    if entry.status != end.status and not (entry.is_good and 200 <= end.status < 300):
        return (f"ended with {end.status or 'no answer'}, was {entry.status or 'not seen'}",), ()
    before, now = shape(entry.answer), shape(end.answer)
    lost = [f"{path} is gone" for path in before if path not in now and _parent(path) in {"", *now}]
    lost += [
        f"{path} is {_words(now[path])}, was {_words(types)}"
        for path, types in before.items()
        if path in now and not now[path] <= types and types != {"null"}
    ]
    kinds = (error_types(entry.answer), error_types(end.answer))
    lost += [f"the error is {_words(kinds[1])}, was {_words(kinds[0])}"] if kinds[0] != kinds[1] else []
    return tuple(lost), tuple(f"{path} is new" for path in now if path not in before and _parent(path) in {"", *before})


def shape(value: Any, path: str = "") -> dict[str, set[str]]:
    """Every place of a JSON value with the types that stand there; places of a list are one: `images[].url`."""
    found: dict[str, set[str]] = {path: {_type(value)}} if path else {}
    for inner, each in _inside(value, path):
        for place, types in shape(each, inner).items():
            found.setdefault(place, set()).update(types)
    return found


def _inside(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{path}.{name}" if path else str(name), each) for name, each in value.items())
    elif isinstance(value, list):
        yield from ((f"{path}[]", each) for each in value)


def _type(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def _parent(path: str) -> str:
    return path.removesuffix("[]") if path.endswith("[]") else path.rpartition(".")[0]


def _words(types: set[str]) -> str:
    return " or ".join(sorted(types)) or "none"


def error_types(answer: Any) -> set[str]:
    """How fal names what went wrong: of a request, or of each of its fields."""
    if not isinstance(answer, dict):
        return set()
    named = {answer["error_type"]} if isinstance(answer.get("error_type"), str) else set()
    detail = answer.get("detail")
    entries = [entry for entry in detail if isinstance(entry, dict)] if isinstance(detail, list) else []
    return named | {str(entry["type"]) for entry in entries if "type" in entry}


def compare_pictures(before: bytes | None, now: bytes | None) -> PicturePair:
    """Two files of pictures; None where there is none."""
    pictures = (_opened(before), _opened(now))
    sizes = (_size(pictures[0]), _size(pictures[1]))
    if pictures[0] is None or pictures[1] is None:
        return PicturePair(sizes, None, None)
    bits = int(np.count_nonzero(difference_hash(pictures[0]) != difference_hash(pictures[1])))
    small = [np.asarray(each.resize((COLOUR_SIDE, COLOUR_SIDE)), dtype=float) for each in pictures if each]
    return PicturePair(sizes, bits, round(float(np.abs(small[0] - small[1]).mean()), 1))


def difference_hash(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(8, 8) bits: whether brightness falls from each place to the next. Source: the well-known dHash of N. Krawetz."""
    grey = picture.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.LANCZOS)
    levels = np.asarray(grey, dtype=int)
    return np.asarray(levels[:, :-1] > levels[:, 1:])


def _opened(content: bytes | None) -> Image.Image | None:
    if content is None:
        return None
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _size(picture: Image.Image | None) -> tuple[int, int] | None:
    return None if picture is None else picture.size
