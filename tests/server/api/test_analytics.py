"""Spans and percentiles of how requests went."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from server.api.analytics import Timeframe, time_series
from server.jobs.store.accounts import Ended

WEDNESDAY = datetime(2026, 11, 25, 13, 45, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("timeframe", "begin"),
    [
        ("minute", "2026-11-25T13:45:00"),
        ("hour", "2026-11-25T13:00:00"),
        ("day", "2026-11-25T00:00:00"),
        ("week", "2026-11-23T00:00:00"),
        ("month", "2026-11-01T00:00:00"),
    ],
)
def test_a_span_begins_where_the_calendar_says(timeframe: Timeframe, begin: str) -> None:
    (bucket,) = time_series([Ended("e", WEDNESDAY, 200, 1.0, 2.0)], timeframe, ["request_count"])
    assert bucket == {"bucket": f"{begin}.000+00:00", "results": [{"endpoint_id": "e", "request_count": 1}]}


def test_percentiles_are_of_what_ran_by_nearest_rank() -> None:
    rows = [Ended("e", WEDNESDAY, 200, seconds / 10, float(seconds)) for seconds in range(1, 11)]
    rows += [Ended("e", WEDNESDAY, 422, None, None), Ended("e", WEDNESDAY, 503, None, None)]
    asked = ["p50_duration", "p75_duration", "p90_prepare_duration", "error_count", "user_error_count"]
    ((line,),) = (bucket["results"] for bucket in time_series(rows, "day", asked))  # type: ignore[arg-type]
    assert [line[name] for name in asked] == [5.0, 8.0, 0.9, 1, 1]
    ((line,),) = (bucket["results"] for bucket in time_series(rows[-1:], "day", ["p50_duration"]))
    assert line["p50_duration"] is None


def test_the_oldest_comes_first_whatever_the_order() -> None:
    rows = [Ended("b", WEDNESDAY, 200, 0, 0), Ended("a", WEDNESDAY, 200, 0, 0), Ended("a", WEDNESDAY - 7200, 200, 0, 0)]
    series = time_series(rows, "hour", ["request_count"])
    assert [[line["endpoint_id"] for line in bucket["results"]] for bucket in series] == [["a"], ["a", "b"]]
