"""A server that dies at named points of a request's life; `make chaos` goes through all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fault_points import fault_points

POINTS = (
    "after a submit is stored",
    "after a claim",
    "after a picture is stored",
    "inside the transaction of an end",
    "between a webhook and its record",
)


@pytest.mark.timeout(600)
def test_no_moment_of_a_death_loses_doubles_or_tears_a_request(tmp_path: Path) -> None:
    report = fault_points(tmp_path, POINTS)
    assert (report["missed"], report["deaths"]) == ([], len(POINTS))
    assert (report["lost"], report["doubled"], report["torn"], report["failed"]) == (0, 0, 0, 0)
