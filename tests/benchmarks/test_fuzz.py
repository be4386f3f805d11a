"""A short form of `make fuzz`: the long one sends 10,000."""

from __future__ import annotations

from pathlib import Path

from benchmarks.broken_requests import broken_requests
from benchmarks.fuzz import fuzz


def test_no_broken_request_is_answered_5xx_or_leaves_the_server_worse(tmp_path: Path) -> None:
    report = fuzz(300, seed=7, folder=tmp_path / "node", schema_share=0.0)
    assert report["faults"] == []
    assert report["inputs"] == 300
    assert report["answers"]["4xx"] > 100


def test_a_seed_names_its_requests() -> None:
    first, second, other = (list(broken_requests(50, seed, "host:1")) for seed in (1, 1, 2))
    assert first == second != other
