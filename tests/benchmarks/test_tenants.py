"""The benchmark of one key beside a greedy one, in short: both are served."""

from __future__ import annotations

from pathlib import Path

from benchmarks.tenants import Greed, run


def test_a_modest_key_is_served_beside_a_backlog(tmp_path: Path) -> None:
    figures = run(tmp_path / "node", seconds=0.5, greed=Greed(backlog=30, pollers=3, floods=2))
    assert figures["requests"] > 0
    assert set(figures["p99_ratio"]) == {"submit", "poll", "request", "submit_work", "poll_work"}
    assert figures["alone_p50_ms"]["submit_work"] > 0
