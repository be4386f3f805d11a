"""A short form of `python -m benchmarks.power_cuts`: the long one cuts 10,000 times."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.power_cuts import cut_often, is_whole
from server.files import folder_objects as objects


def test_a_power_cut_loses_no_promise_and_leaves_no_result_without_its_picture(tmp_path: Path) -> None:
    report = cut_often(40, 0, tmp_path)
    assert is_whole(report), report
    assert report["results"] > 50


def test_without_the_sync_of_the_folder_the_same_cuts_lose_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the simulation can find a loss at all."""
    monkeypatch.setattr(objects, "_sync_folder", lambda folder: None)
    assert cut_often(10, 0, tmp_path)["missing"] > 5
