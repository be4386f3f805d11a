"""Workers, nodes and the database are killed and frozen at random: what `make chaos-cluster` runs, in short."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.chaos_cluster import chaos, is_whole


@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("total", "kills"), [(40, 5), pytest.param(1000, 40, marks=pytest.mark.slow)])
def test_nothing_is_lost_and_nothing_ends_twice(tmp_path: Path, total: int, kills: int) -> None:
    seed = random.randrange(2**32)
    report = chaos(total, kills, seed, lease_s=3.0, folder=tmp_path)
    assert is_whole(report), report
    assert report["requests"] == total
    assert sum(report["kills"].values()) == kills
