"""How much memory this process may still take: the machine's, and the limits that a container or service sets."""

from __future__ import annotations

from pathlib import Path

import psutil

from models.control_groups import MEMBERSHIP, ROOT, groups, number

_VMSTAT = Path("/proc/vmstat")


def available(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Bytes, page cache that can be dropped counted as free."""
    return min([int(psutil.virtual_memory().available), *(limit - used for limit, used in _limits(root, membership))])


def total(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Bytes that the machine or the tightest limit allows in all."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _limits(root, membership))])


def kills(root: Path = ROOT, membership: Path = MEMBERSHIP, vmstat: Path = _VMSTAT) -> int:
    """How many processes the kernel has killed for want of memory, as far as it shows here: grows, never falls."""
    files = [
        folder / name
        for folder in groups("memory", root, membership)
        for name in ("memory.events", "memory.oom_control")
    ]
    return max((_words(file).get("oom_kill", 0) for file in (*files, vmstat)), default=0)


def _limits(root: Path, membership: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be dropped) of every control group above this process that has a limit."""
    found = []
    for folder in groups("memory", root, membership):
        limit, used = number(folder / "memory.max"), number(folder / "memory.current")
        if limit is None:  # version 1
            limit, used = number(folder / "memory.limit_in_bytes"), number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            found.append((limit, max(0, used - _droppable(folder))))
    return found


def _droppable(folder: Path) -> int:
    words = _words(folder / "memory.stat")
    return words.get("inactive_file", words.get("total_inactive_file", 0))


def _words(file: Path) -> dict[str, int]:
    """Lines of a name and a number; nothing for what cannot be read."""
    try:
        return {name: int(number) for name, number in (line.split() for line in file.read_text().splitlines())}
    except (OSError, ValueError):
        return {}
