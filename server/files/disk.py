"""Whether a folder takes writes: a node that cannot store what it draws must say so, and draw no more."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger("fluxserve.disk")

MIN_FREE_BYTES = 16 << 20
"""Room for the database's log and a few pictures; below it the next write may be the one that is refused."""
_PROBE_BYTES = 64 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Disk:
    """What is known of one folder; `probe` finds out. Any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_proven = False
        self.problem: str | None = None
        """Why it takes no writes, in one sentence; None while it does."""

    @property
    def is_writable(self) -> bool:
        """False from a refused write, or from too little room, until a probe has succeeded."""
        return self.problem is None

    def note_refused_write(self, cause: OSError | None = None) -> None:
        """A write was refused just now."""
        self._turn("a write was refused" if cause is None else describe(cause))

    def probe(self) -> None:
        """Look at the folder; the first time, and after a refusal, also write something."""
        self._turn(self._refusal())

    def _refusal(self) -> str | None:
        try:
            if not self._is_proven or self.problem is not None:
                why = why_not_writable(self._folder)
                self._is_proven = why is None
                return why
            return _scarce(self._folder) or _forbidden(self._folder)
        except OSError as exc:
            return describe(exc)

    def _turn(self, why: str | None) -> None:
        was, self.problem = self.problem, None if why is None else f"{self._folder} takes no writes: {why}"
        if was is None and self.problem is not None:
            logger.error("%s; not ready until it does", self.problem)
        elif was is not None and self.problem is None:
            logger.info("%s takes writes again", self._folder)


def why_not_writable(folder: Path) -> str | None:
    """What keeps files from being written below a folder, in a few words; None if nothing does.

    Writes a file of a few blocks, durably, because a quota shows nowhere else."""
    path = folder / "disk-probe"
    try:
        if scarce := _scarce(folder):
            return scarce
        try:
            with path.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)
    except OSError as exc:
        return describe(exc)
    return None


def describe(cause: OSError) -> str:
    """Why a write was refused, in a few words without a path."""
    if cause.errno in _FULL:
        return "the disk is full"
    return "the folder is missing" if cause.errno == errno.ENOENT else (cause.strerror or str(cause)).lower()


def _scarce(folder: Path) -> str | None:
    free = shutil.disk_usage(folder).free
    if free >= MIN_FREE_BYTES:
        return None
    return f"the disk is full ({free >> 20} MiB are free, {MIN_FREE_BYTES >> 20} are needed)"


def _forbidden(folder: Path) -> str | None:
    """Seen without a write: taken rights, and a file system that turned read-only."""
    return None if os.access(folder, os.W_OK | os.X_OK) else "it is read-only for this process"
