"""What another server answers is read as far as it can be, whatever it is."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.shadow.asking import end_of, end_of_stream


@pytest.mark.parametrize(
    ("body", "inference"),
    [
        ({"timings": {"inference": 1}}, 1.0),
        ({"timings": {"inference": "1"}}, None),
        ({"timings": [1]}, None),
        ({"timings": 3}, None),
        ([], None),
    ],
)
def test_times_are_read_where_there_are_any(body: Any, inference: float | None) -> None:
    assert end_of(httpx.Response(200, json=body)).inference == inference


def test_json_that_nests_too_deep_is_a_text() -> None:
    deep = '{"detail": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert end_of(httpx.Response(200, text=deep)).answer == deep[:1000]
    assert end_of_stream(200, f"data: {deep}").answer == f"data: {deep}"[:1000]
