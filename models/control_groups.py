"""The control groups that this process is in: what a container, a service or a slice allows it."""

from __future__ import annotations

from pathlib import Path

ROOT, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def groups(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[Path]:
    """This process's group and those above it. In a container its own group is mounted as the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            base = root / controller if controllers else root
            group = base / path.lstrip("/")
            folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(base) and folder.is_dir()]
    return list(dict.fromkeys(folders))


def startable(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int | None:
    """How many more processes and threads may be started; None where no group sets a limit."""
    found = [
        (number(folder / "pids.max"), number(folder / "pids.current")) for folder in groups("pids", root, membership)
    ]
    return min((max(0, limit - used) for limit, used in found if limit is not None and used is not None), default=None)


def number(file: Path) -> int | None:
    """None for `max`, for version 1's way to say the same, and for what is not there."""
    try:
        value = int(file.read_text())
    except (OSError, ValueError):
        return None
    return value if value < 1 << 60 else None
