"""pydantic's faults as a caller reads them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from server.api.endpoints import ENDPOINTS, Endpoint
from server.api.errors import InputError
from server.api.schemas.text_to_image import FluxDev as Sized
from server.api.submission import parse
from server.api.validation import input_error

Place = tuple[str | int, ...]
WRONG = (9, 1.5, True, "x", "", None, [], [9], ["x"], [None], [[9]], {}, {"zzz": 1}, [{}], [{"zzz": 1}])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"prompt": "x", "seed": 18446744073709551616}', "seed"),
        (b'{"prompt": "x", "seed": -1e30}', "seed"),
        (b'{"prompt": "x", "image_size": {"width": 1e30, "height": 512}}', "width"),
        (b'{"prompt": "x", "num_images": "' + b"9" * 5000 + b'"}', "num_images"),
    ],
)
def test_an_integer_beyond_64_bits_is_told_the_limit(body: bytes, field: str) -> None:
    value: dict[str, Any] = orjson.loads(body)
    with pytest.raises(ValidationError) as caught:
        Sized.model_validate(value)
    (fault,) = input_error(caught.value).problems
    assert fault["loc"][-1] == field
    assert fault["msg"] == "Input should be a whole number from -9223372036854775808 to 18446744073709551615"
    assert fault["ctx"] == {"ge": -(2**63), "le": 2**64 - 1}
    assert "input" not in fault  # a float by now, with other digits than were sent


def test_the_schema_has_the_bounds_of_a_seed() -> None:
    seed, _null = Sized.model_json_schema()["properties"]["seed"]["anyOf"]
    assert (seed["minimum"], seed["maximum"]) == (-(2**63), 2**64 - 1)
    assert Sized.model_validate({"prompt": "x", "seed": str(2**64 + 1)}).seed == 2**64 + 1


def places(schema: dict[str, Any], defs: dict[str, Any], place: Place = ()) -> Iterator[Place]:
    """Every field below a JSON schema, items of lists as the first."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if place:
        yield place
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from places(part, defs, place)
    for name, field in schema.get("properties", {}).items():
        yield from places(field, defs, (*place, name))
    if "items" in schema:
        yield from places(schema["items"], defs, (*place, 0))


def holding(value: object, place: Place) -> Any:
    """An input with that value at that place, and nothing beside."""
    for part in reversed(place):
        value = [value] if part == 0 else {part: value}
    return value


def faults(row: Endpoint, body: dict[str, Any]) -> list[Place]:
    """Where an input is told to be wrong."""
    try:
        parse(row, body)
    except InputError as exc:
        return [tuple(problem["loc"][1:]) for problem in exc.problems]
    return []


@pytest.mark.parametrize("endpoint", sorted(ENDPOINTS))
def test_whatever_is_sent_in_any_field_is_told_once_and_at_names_that_the_caller_knows(endpoint: str) -> None:
    row = ENDPOINTS[endpoint]
    schema = row.schema.model_json_schema()
    known = dict.fromkeys(places(schema, schema.get("$defs", {})))
    for place, value in product(known, WRONG):
        told = faults(row, holding(value, place))
        assert set(told) <= set(known), (place, value, told)
        assert len(told) == len(set(told)), (place, value, told)
