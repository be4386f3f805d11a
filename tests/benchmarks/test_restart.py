"""A server that was killed over a history answers about it, and goes on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.restart import measure


def test_a_killed_history_is_answered_for_after_a_start(tmp_path: Path) -> None:
    report = measure(tmp_path / "data", ended=60, waiting=40, log_mb=64)
    assert report["mb"]["jobs.db-wal"] > 0, "the log of the killed process is still there"
    seconds = report["seconds"]["with it"]
    assert 0 < seconds["livez"] <= seconds["submit"]
    assert report["seconds"]["without a history"]["livez"] > 0
    assert set(seconds) == {"livez", "status of a waiting one", "result of an ended one", "submit", "readyz"}
