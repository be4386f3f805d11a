"""pydantic's faults as a caller reads them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from server.api.schemas.text_to_image import FluxDev as Sized
from server.api.validation import input_error


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
