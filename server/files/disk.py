"""Whether the data directory takes writes: a node whose disk is full can accept nothing, and must say so."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

logger = logging.getLogger("fluxserve.disk")

MIN_FREE_BYTES = 16 << 20
"""Room for the database's log and a few pictures; below it the next write may be the one that is refused."""
_PROBE_BYTES = 64 << 10


class Disk:
    """What is known of one folder's disk; `probe` finds out. Any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_writable = True

    @property
    def is_writable(self) -> bool:
        """False from a refused write, or from too little room, until a probe has succeeded."""
        return self._is_writable

    def note_refused_write(self) -> None:
        """A write was refused just now."""
        self._turn(False, "a write was refused")

    def probe(self) -> None:
        """Look at the room that is left; after a refusal also write something."""
        try:
            free = shutil.disk_usage(self._folder).free
            if free >= MIN_FREE_BYTES and not self._is_writable:
                self._write()
        except OSError as exc:
            self._turn(False, str(exc))
        else:
            self._turn(free >= MIN_FREE_BYTES, f"{free >> 20} MiB are free, {MIN_FREE_BYTES >> 20} are needed")

    def _write(self) -> None:
        """A file of a few blocks, durably, because a quota shows nowhere else. Raises: OSError."""
        path = self._folder / "disk-probe"
        try:
            with path.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            path.unlink(missing_ok=True)

    def _turn(self, is_writable: bool, why: str) -> None:
        if is_writable == self._is_writable:
            return
        self._is_writable = is_writable
        if is_writable:
            logger.info("%s takes writes again", self._folder)
        else:
            logger.error("%s takes no writes: %s; not ready until it does", self._folder, why)
