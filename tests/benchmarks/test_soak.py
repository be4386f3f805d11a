"""A short form of `make soak`: the long one takes an hour."""

from __future__ import annotations

from pathlib import Path

from benchmarks.soak import soak


def test_every_kind_of_request_ends_as_it_should(tmp_path: Path) -> None:
    report = soak(0.15, rate=8.0, folder=tmp_path)
    assert set(report["requests"]) == {"polled", "watched", "cancelled", "malformed"}
    assert sum(report["requests"].values()) >= 20
