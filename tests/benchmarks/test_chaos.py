"""A short form of `make chaos`, which submits 1,000; CI kills without HTTP, in tests/server/jobs/test_chaos.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos import chaos, is_whole


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_request_is_lost_doubled_or_torn(tmp_path: Path) -> None:
    report = chaos(40, kills=5, seed=5, folder=tmp_path)
    assert is_whole(report), report
    assert sum(report["kills"].values()) == 5
