"""What counts as a difference that a program could notice."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, ImageDraw

from server.shadow.asking import End
from server.shadow.compare import compare_pictures, differences, shape
from server.shadow.recording import Entry

ANSWER = {"images": [{"url": "recorded:a.png", "width": 512}], "seed": 7, "timings": {"inference": 0.5}, "note": None}


def entry(answer: Any, status: int = 200) -> Entry:
    """A recorded request that ended so."""
    return Entry("fal-ai/flux/dev", "queue", "2026-01-01T00:00:00+00:00", 1.0, None, status, {}, answer)


def test_a_shape_has_one_place_for_all_of_a_list() -> None:
    assert shape({"a": [{"b": 1}, {"b": "x"}]}) == {
        "a": {"list"},
        "a[]": {"object"},
        "a[].b": {"number", "text"},
    }


@pytest.mark.parametrize(
    ("change", "lost", "gained"),
    [
        ({}, (), ()),
        ({"seed": 7.5}, (), ()),
        ({"seed": 8, "images": [{"url": "http://x/b.png", "width": 1}] * 2}, (), ()),
        ({"seed": "7"}, ("seed is text, was number",), ()),
        ({"images": []}, ("images[] is gone",), ()),
        ({"images": [{"url": "u"}]}, ("images[].width is gone",), ()),
        ({"timings": {}}, ("timings.inference is gone",), ()),
        ({"note": "now"}, (), ()),
        ({"more": {"a": 1}}, (), ("more is new",)),
        ({"seed": None}, ("seed is null, was number",), ()),
    ],
)
def test_what_is_gone_or_of_another_type_is_told_and_no_value_is(
    change: dict[str, Any], lost: tuple[str, ...], gained: tuple[str, ...]
) -> None:
    assert differences(entry(ANSWER), End(200, ANSWER | change)) == (lost, gained)


def test_a_place_that_is_gone_is_told_once_and_not_for_all_below_it() -> None:
    without = {name: value for name, value in ANSWER.items() if name != "images"}
    assert differences(entry(ANSWER), End(200, without))[0] == ("images is gone",)


def test_another_end_is_told_by_its_status_and_another_error_by_its_type() -> None:
    refused = {"detail": [{"loc": ["body", "seed"], "msg": "no", "type": "int_parsing"}]}
    assert differences(entry(ANSWER), End(422, refused)) == (("ended with 422, was 200",), ())
    assert differences(entry(ANSWER), End(0, {}))[0] == ("ended with no answer, was 200",)
    assert differences(entry(ANSWER, 201), End(200, ANSWER)) == ((), ())
    other = {"detail": [{"loc": ["body", "seed"], "msg": "never", "type": "missing"}]}
    assert differences(entry(refused, 422), End(422, other))[0] == ("the error is missing, was int_parsing",)


def picture(colour: str, at: int, kind: str = "PNG", size: int = 256) -> bytes:
    """A circle on a blue ground."""
    image = Image.new("RGB", (size, size), "blue")
    ImageDraw.Draw(image).ellipse((at, at, at + size // 3, at + size // 3), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_stored_anew_is_near_and_another_one_far() -> None:
    stored = compare_pictures(picture("red", 30), picture("red", 30, "JPEG"))
    assert stored.bits is not None
    assert stored.bits <= 5
    assert stored.sizes == ((256, 256), (256, 256))
    moved = compare_pictures(picture("red", 10), picture("red", 150, size=300))
    assert moved.bits is not None
    assert moved.bits > 10
    assert moved.sizes[1] == (300, 300)


def test_a_change_of_colour_that_the_hash_cannot_see_is_told_by_the_colour() -> None:
    same, other = (compare_pictures(picture("red", 30), picture(colour, 30)).colour for colour in ("red", "magenta"))
    assert same == 0
    assert other is not None
    assert other > 2


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_what_is_no_picture_has_no_distance(content: bytes | None) -> None:
    pair = compare_pictures(picture("red", 30), content)
    assert (pair.bits, pair.colour, pair.sizes[1]) == (None, None, None)
