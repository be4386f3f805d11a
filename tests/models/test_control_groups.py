"""How many processes control groups still allow."""

from __future__ import annotations

from pathlib import Path

from models.control_groups import startable


def limited(folder: Path, limit: object, used: int) -> None:
    folder.mkdir(parents=True)
    (folder / "pids.max").write_text(f"{limit}\n")
    (folder / "pids.current").write_text(f"{used}\n")


def test_the_tightest_limit_of_processes_counts(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("0::/slice/service\n")
    limited(root / "slice", 500, 480)
    limited(root / "slice" / "service", "max", 30)
    assert startable(root, membership) == 20


def test_version_1_and_a_limit_lowered_below_what_runs_are_read(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("8:pids:/docker/a\n")
    limited(root / "pids" / "docker" / "a", 10, 12)
    assert startable(root, membership) == 0


def test_without_a_limit_none_is_told(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("0::/\n8:pids:/\n")
    limited(tmp_path / "cgroup", "max", 12)
    assert startable(tmp_path / "cgroup", membership) is None
