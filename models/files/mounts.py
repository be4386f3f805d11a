"""Whether a file lies on another machine: reading such a file in order beats mapping it. No torch."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "ceph", "glusterfs", "beegfs", "gpfs", "afs", "9p", "virtiofs"}
)
"""What Linux calls them; besides `fuse` and `fuse.NAME` (sshfs, s3fs, ...), but not `fuseblk`, a local disk."""


def is_remote(file: Path, mounts: Path = _MOUNTS) -> bool:
    """By the table of mounts; False where there is none. Links are followed."""
    where = file.resolve()
    kinds = dict(_points(mounts))  # of several mounts at one place the last one counts
    below = [point for point in kinds if where.is_relative_to(point)]
    kind = kinds[max(below, key=lambda point: len(point.parts))] if below else ""
    return kind in _REMOTE or kind == "fuse" or kind.startswith("fuse.")


def _points(mounts: Path) -> list[tuple[Path, str]]:
    """(mount point, kind of file system), as proc(5) describes a line."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return []
    halves = (line.split(" - ", 1) for line in lines if " - " in line)
    return [(Path(_unescaped(before.split()[4])), after.split()[0]) for before, after in halves]


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
