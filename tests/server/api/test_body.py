"""JSON bodies: strict, bounded, and never a crash."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.body import MAX_DEPTH, MAX_MARKS, MAX_VALUES, is_crowded, parse_object
from server.api.errors import InputError
from server.api.messages import Message


def entry(data: bytes) -> dict[str, Any]:
    with pytest.raises(InputError) as caught:
        parse_object(data)
    (only,) = caught.value.problems
    return only


@pytest.mark.parametrize("data", [b"", b"  \n"])
def test_an_empty_body_is_an_empty_object(data: bytes) -> None:
    assert parse_object(data) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 400 + b"}",
        rb'{"a": "\ud800"}',
        b'{"a": "\xff"}',
        b"\xff\xfe{",
        b"\xef\xbb\xbf{}{}",
        b"{}{}",
        b"[" * 100_000,
        b'{"a":' * 2000,
    ],
)
def test_what_is_not_json_is_named_so(data: bytes) -> None:
    assert entry(data)["type"] == "json_invalid"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"a": 1e999}', "a number is too large"),
        (b'{"a": -' + b"9" * 5000 + b"}", "a number is too large"),
        (b'{"a": "\xff"}', "the body is not UTF-8 text"),
        ('{"a": "é"}'.encode("latin-1"), "the body is not UTF-8 text"),
        (b'{"a":' * 2000, f"nested deeper than {MAX_DEPTH} levels"),
        (b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", f"nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_the_cause_is_said_in_words_a_caller_can_act_on(data: bytes, error: str) -> None:
    assert entry(data)["ctx"] == {"error": error}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_json_of_windows_tools_is_read_as_fal_reads_it(encoding: str) -> None:
    assert parse_object('{"prompt": "a ☃"}'.encode(encoding)) == {"prompt": "a ☃"}


@pytest.mark.parametrize("data", [b"[]", b"null", b'"text"', b"5", b"true"])
def test_other_json_than_an_object_is_refused(data: bytes) -> None:
    fault = entry(data)
    assert (fault["type"], fault["loc"]) == ("model_attributes_type", ["body"])


def test_nesting_is_bounded() -> None:
    deepest = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    assert parse_object(deepest)
    too_deep = b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"
    assert "deeper" in entry(too_deep)["ctx"]["error"]


@pytest.mark.parametrize(
    "data",
    [
        b'{"loras":[' + b",".join([b'{"path":1}'] * 5001) + b"]}",
        b"{" + b",".join(b'"%d":0' % number for number in range(MAX_VALUES + 1)) + b"}",
        b'{"a":[' + b"{}," * MAX_MARKS + b"{}]}",
        b'{"a":[' + b"[]," * (MAX_VALUES + 1) + b"[]]}",
    ],
)
def test_the_number_of_values_is_bounded(data: bytes) -> None:
    assert entry(data)["ctx"] == {"error": f"more than {MAX_VALUES} values"}


@pytest.mark.parametrize("mark", [b",", b"[", b"{"])
def test_marks_are_counted_up_to_the_bound_in_texts_of_any_length(mark: bytes) -> None:
    long = (2 * MAX_MARKS) * b"x"
    assert not is_crowded(long + mark)
    assert not is_crowded(long + MAX_MARKS * mark)
    assert is_crowded(long + (MAX_MARKS + 1) * mark)
    assert is_crowded(b"[{," + MAX_MARKS * b"," + mark)


def test_what_is_refused_for_its_many_values_is_not_built_before() -> None:
    bomb = b'{"a":[' + b"{}," * (1 << 20) + b"{}]}"
    tracemalloc.start()
    entry(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(bomb)


def test_a_long_text_may_hold_many_commas() -> None:
    assert parse_object(b'{"prompt": "' + b", [{" * 30_000 + b'"}')


def test_many_full_lists_of_a_binary_message_are_not_built_before_they_are_refused() -> None:
    inner = msgpack.packb([0] * MAX_VALUES)
    bomb = b"\x81\xa1a" + b"\xdc\x03\xe8" + 1000 * inner
    tracemalloc.start()
    with pytest.raises(InputError):
        Message(bomb, is_binary=True).decode()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(bomb)
    assert Message(msgpack.packb({"a": [0] * (MAX_VALUES - 1)}), is_binary=True).decode()


@pytest.mark.parametrize("filler", [b"\x80", b"\x90", b"\xc0"])
def test_the_values_of_a_binary_message_are_bounded(filler: bytes) -> None:
    """Maps, lists and nothings, a byte each, in lists of ten thousand."""
    lists = b"\xdc" + (3).to_bytes(2, "big") + (b"\xdc" + (10_000).to_bytes(2, "big") + filler * 10_000) * 3
    with pytest.raises(InputError):
        Message(b"\x81\xa1a" + lists, is_binary=True).decode()


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_an_input_error(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(parse_object(data), dict)
