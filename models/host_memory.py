"""How much memory this process may still take: the machine's, and the limits that a container or service sets."""

from __future__ import annotations

from pathlib import Path

import psutil

_CGROUP, _MEMBERSHIP, _VMSTAT = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/vmstat")


def available(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Bytes, page cache that can be dropped counted as free."""
    return min([int(psutil.virtual_memory().available), *(limit - used for limit, used in _limits(root, membership))])


def total(root: Path = _CGROUP, membership: Path = _MEMBERSHIP) -> int:
    """Bytes that the machine or the tightest limit allows in all."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits(root, membership))])


def kills(root: Path = _CGROUP, membership: Path = _MEMBERSHIP, vmstat: Path = _VMSTAT) -> int:
    """How many processes the kernel has killed for want of memory, as far as it shows here: grows, never falls."""
    files = [folder / name for folder in _groups(root, membership) for name in ("memory.events", "memory.oom_control")]
    return max((_words(file).get("oom_kill", 0) for file in (*files, vmstat)), default=0)


def _limits(root: Path, membership: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of every control group above this process that has a limit."""
    found = []
    for folder in _groups(root, membership):
        limit, used = _number(folder / "memory.max"), _number(folder / "memory.current")
        if limit is None:  # version 1
            limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            found.append((limit, max(0, used - _droppable(folder))))
    return found


def _groups(root: Path, membership: Path) -> list[Path]:
    """This process's group and those above it. In a container its own group is mounted as the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            base = root / "memory" if controllers else root
            group = base / path.lstrip("/")
            folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return list(dict.fromkeys(folders))


def _droppable(folder: Path) -> int:
    words = _words(folder / "memory.stat")
    return words.get("inactive_file", words.get("total_inactive_file", 0))


def _words(file: Path) -> dict[str, int]:
    """Lines of a name and a number; nothing for what cannot be read."""
    try:
        return {name: int(number) for name, number in (line.split() for line in file.read_text().splitlines())}
    except (OSError, ValueError):
        return {}


def _number(file: Path) -> int | None:
    """None for `max`, for version 1's way to say the same, and for what is not there."""
    try:
        value = int(file.read_text())
    except (OSError, ValueError):
        return None
    return value if value < 1 << 60 else None
