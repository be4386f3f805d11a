"""The memory that a process may take, under the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import psutil

from models import host_memory


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_tightest_limit_above_the_process_counts(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("0::/system.slice/fluxserve.service\n")
    service = root / "system.slice" / "fluxserve.service"
    group(service, memory__max="max", memory__current=90_000)
    group(service.parent, memory__max=400_000, memory__current=100_000, memory__stat="anon 70000\ninactive_file 30000")
    assert host_memory.available(root, membership) == 330_000
    assert host_memory.total(root, membership) == 400_000


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("0::/not/mounted/here\n")
    group(root, memory__max=5_000_000, memory__current=1_000_000)
    assert host_memory.available(root, membership) == 4_000_000


def test_version_1_is_read(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("12:cpu,cpuacct:/a\n4:memory:/a\n")
    group(root / "memory" / "a", memory__limit_in_bytes=3_000_000, memory__usage_in_bytes=1_000_000)
    group(root / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=2_000_000)
    assert host_memory.available(root, membership) == 2_000_000


def test_without_limits_it_is_the_machine_s(tmp_path: Path) -> None:
    nowhere = tmp_path / "nothing"
    assert host_memory.total(nowhere, nowhere) == psutil.virtual_memory().total
    assert 0 < host_memory.available(nowhere, nowhere) <= psutil.virtual_memory().total


def test_processes_that_the_kernel_killed_for_memory_are_counted(tmp_path: Path) -> None:
    root, membership, vmstat = tmp_path / "cgroup", tmp_path / "membership", tmp_path / "vmstat"
    membership.write_text("0::/a\n4:memory:/b\n")
    assert host_memory.kills(root, membership, vmstat) == 0
    vmstat.write_text("nr_free_pages 5\noom_kill 1\n")
    assert host_memory.kills(root, membership, vmstat) == 1
    group(root / "memory" / "b", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2")
    assert host_memory.kills(root, membership, vmstat) == 2
    group(root / "a", memory__events="low 0\nmax 17\noom 4\noom_kill 3\noom_group_kill 0")
    assert host_memory.kills(root, membership, vmstat) == 3
